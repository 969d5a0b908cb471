#!/usr/bin/env bash
# The fault matrix with many seeds per row, and the models of the job machinery at length: scripts/test-faults.sh [filter]. FAULT_SEEDS (50) says how many,
# FAULT_FIRST_SEED (1) where they begin. Takes hours.
set -euo pipefail
cd "$(dirname "$0")/.."
export FAULT_SEEDS=${FAULT_SEEDS:-50} FAULT_FIRST_SEED=${FAULT_FIRST_SEED:-1}
# More random histories of `decide`, and the whole state space of the protocol's model.
export PROPTEST_CASES=${PROPTEST_CASES:-100000} HONE_WHOLE_MODEL=1
scripts/build.sh dev >/dev/null
cargo build --quiet --workspace --example script_trainer
if command -v cargo-nextest >/dev/null; then
  exec cargo nextest run --workspace --no-fail-fast -E 'binary(faults) or (package(backend) and test(jobs::decide))' "$@"
fi
cargo test --workspace --lib jobs::decide
exec cargo test --workspace --test faults "$@"
