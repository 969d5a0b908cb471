#!/usr/bin/env bash
# Arrows point one way. Fails with every dependency that must not be there.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0

# forbid CRATE REASON DEPENDENCY…: none of them may be linked into CRATE or run at its build.
forbid() {
  local crate=$1 reason=$2 dependency linked
  shift 2
  linked=" $(cargo tree --locked --package "$crate" --edges normal,build --prefix none --format '{p}' | cut -d ' ' -f 1 | sort -u | tr '\n' ' ') "
  for dependency in "$@"; do
    if [[ $linked == *" $dependency "* ]]; then
      printf '%s links %s: %s\n' "$crate" "$dependency" "$reason" >&2
      cargo tree --locked --package "$crate" --edges normal,build --invert "$dependency" >&2
      failed=1
    fi
  done
}

database=(diesel diesel-async tokio-postgres)
s3=(rusoto_core rusoto_s3 s3s)
compute=(candle-core candle-nn kernels)

forbid backend "services talk only via HTTP and S3; it leaves S3 to the gateway and computing to the trainer" \
  storage-gateway trainer cli testkit "${s3[@]}" "${compute[@]}"
forbid storage-gateway "services talk only via HTTP and S3; it has no database and computes nothing" \
  backend trainer cli testkit "${database[@]}" "${compute[@]}"
forbid trainer "services talk only via HTTP and S3; it has no database and no S3 keys" \
  backend storage-gateway cli testkit "${database[@]}" "${s3[@]}"
forbid cli "it starts the services as child processes and talks to them over HTTP" \
  backend storage-gateway trainer testkit "${database[@]}" "${s3[@]}" "${compute[@]}"
forbid wire "the contract is data: no I/O, no services" \
  service dataset backend storage-gateway trainer cli testkit actix-web reqwest tokio "${database[@]}" "${s3[@]}" "${compute[@]}"
forbid service "plumbing knows nothing of services, datasets or models" \
  dataset backend storage-gateway trainer cli testkit "${database[@]}" "${s3[@]}" "${compute[@]}"
forbid dataset "a library knows nothing of services" \
  service backend storage-gateway trainer cli testkit "${database[@]}" "${s3[@]}" "${compute[@]}"
forbid kernels "a library knows nothing of services" \
  wire service dataset backend storage-gateway trainer cli testkit "${database[@]}" "${s3[@]}"
exit "$failed"
