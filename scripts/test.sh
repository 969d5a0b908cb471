#!/usr/bin/env bash
# Runs all tests. The end-to-end ones drive the programs themselves, so those are built first.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh dev >/dev/null
if command -v cargo-nextest >/dev/null; then
  exec cargo nextest run --workspace "$@"
fi
exec cargo test --workspace --quiet "$@"
