#!/usr/bin/env bash
# Builds Hone's programs: scripts/build.sh [release|dev]. Prints the directory they are in.
set -euo pipefail
cd "$(dirname "$0")/.."
profile=${1:-release}
cargo build --profile "$profile" --workspace --bins >&2
[ "$profile" = dev ] && profile=debug
echo "${CARGO_TARGET_DIR:-target}/$profile"
