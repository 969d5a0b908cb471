#!/usr/bin/env bash
# Everything that needs no running program: formatting, lints, directions, lengths, licences, shell scripts.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\033[1m%s\033[0m\n' "$*" >&2; }

step "formatting"
cargo fmt --all --check
step "lints"
cargo clippy --workspace --all-targets --quiet -- -D warnings
step "dependency directions"
scripts/check-directions.sh
step "file lengths"
scripts/check-lengths.sh

if command -v cargo-deny >/dev/null; then
  step "licences, bans, sources"
  cargo deny --log-level error check bans licenses sources
  # The database of advisories is fetched from GitHub; a machine without access still checks the rest.
  if cargo deny --log-level off fetch db >/dev/null 2>&1; then
    step "advisories"
    cargo deny --log-level error check advisories
  else
    echo "skipped: advisories (their database cannot be fetched from here)" >&2
  fi
else
  echo "skipped: cargo-deny (cargo install --locked cargo-deny)" >&2
fi
if command -v shellcheck >/dev/null; then
  step "shell scripts"
  shellcheck scripts/*.sh deploy/*.sh .ci/run
else
  echo "skipped: shellcheck (apt-get install shellcheck)" >&2
fi
step "checks passed"
