#!/usr/bin/env bash
# The fault matrix with many seeds per row: scripts/test-faults.sh [filter]. FAULT_SEEDS (50) says how many,
# FAULT_FIRST_SEED (1) where they begin. Takes hours.
set -euo pipefail
cd "$(dirname "$0")/.."
export FAULT_SEEDS=${FAULT_SEEDS:-50} FAULT_FIRST_SEED=${FAULT_FIRST_SEED:-1}
scripts/build.sh dev >/dev/null
cargo build --quiet --workspace --example script_trainer
if command -v cargo-nextest >/dev/null; then
  exec cargo nextest run --workspace --test faults --no-fail-fast "$@"
fi
exec cargo test --workspace --test faults "$@"
