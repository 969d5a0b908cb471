#!/usr/bin/env bash
# A large upload with five cuts through a release gateway: scripts/test-upload.sh [MiB], default 19074 (20 GB).
# Fails unless it completes with the right digest and the gateway's memory never passed 64 MiB. Needs as much disk as the
# upload is large (in TMPDIR), for as long as it runs.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet --release --workspace --bin hone-gateway
cargo build --quiet --workspace --bins
HONE_TEST_GATEWAY=$PWD/${CARGO_TARGET_DIR:-target}/release/hone-gateway
export HONE_TEST_GATEWAY HONE_UPLOAD_MB=${1:-19074}
exec cargo test --quiet --workspace --test faults an_upload_with_five_cuts -- --nocapture
