#!/usr/bin/env bash
# Removes the cluster of scripts/kind-setup.sh, with its database, its objects and its secrets. Images stay.
set -euo pipefail
cd "$(dirname "$0")/.."
kind delete cluster --name hone
rm -rf target/kind
