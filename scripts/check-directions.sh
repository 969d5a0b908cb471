#!/usr/bin/env bash
# Arrows point one way. Fails with every dependency that must not be there.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0

# forbid CRATE DEPENDENCY REASON: DEPENDENCY must not be linked into CRATE.
forbid() {
  # cargo tree fails when the dependency is nowhere in the tree, which is what we want.
  local tree
  tree=$(cargo tree --locked --package "$1" --edges normal,build --invert "$2" 2>/dev/null) || return 0
  # Without the package in the selection it prints nothing, or only the package itself.
  [ "$(grep -c . <<<"$tree")" -gt 1 ] || return 0
  printf '%s links %s: %s\n%s\n\n' "$1" "$2" "$3" "$tree" >&2
  failed=1
}

services=(backend storage-gateway trainer)
for a in "${services[@]}" cli; do
  for b in "${services[@]}" cli; do
    [ "$a" = "$b" ] || forbid "$a" "$b" "services talk only via HTTP and S3"
  done
done
for crate in trainer storage-gateway cli kernels dataset wire service; do
  forbid "$crate" diesel "only the backend has a database"
  forbid "$crate" tokio-postgres "only the backend has a database"
done
for crate in backend trainer cli kernels dataset wire service; do
  forbid "$crate" rusoto_core "only the gateway touches S3"
  forbid "$crate" rusoto_s3 "only the gateway touches S3"
done
for crate in backend storage-gateway cli wire service; do
  forbid "$crate" candle-core "only the trainer computes"
  forbid "$crate" kernels "only the trainer computes"
done
for crate in wire service dataset kernels; do
  for b in "${services[@]}" cli testkit; do
    forbid "$crate" "$b" "libraries know nothing of services"
  done
done
forbid wire actix-web "the contract does no I/O"
forbid wire reqwest "the contract does no I/O"
for crate in "${services[@]}" cli; do
  forbid "$crate" testkit "test support is for tests"
done
exit "$failed"
