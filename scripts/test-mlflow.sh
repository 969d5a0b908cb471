#!/usr/bin/env bash
# Exports jobs to a real MLflow server, unmodified, with everything else real too: `hone up` in a temporary directory
# with its Postgres, storage gateway and trainers. The server is killed in mid-run, and the backend.
#
#   scripts/test-mlflow.sh [NAME OF A TEST, as python's unittest -k takes it]
#
# Needs Debian (or Ubuntu). MLflow, in the version of crates/backend/tests/clients/requirements-mlflow.txt, goes into
# target/clients. Leaves nothing running; ends within a few minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

tests=$PWD/crates/backend/tests/clients
cache=$PWD/target/clients
requirements=$tests/requirements-mlflow.txt

say() { printf '\n== %s\n' "$*" >&2; }

dir=
# shellcheck disable=SC2329 # called by the trap
cleanup() {
  local status=$? log
  trap - EXIT INT TERM
  if [ -n "$dir" ]; then
    if [ "$status" -ne 0 ]; then
      for log in "$dir"/data/logs/* "$dir"/mlflow/mlflow.log; do
        printf '\n---- last lines of %s\n' "${log##*/}" >&2
        tail -n 40 "$log" >&2 || true
      done
    fi
    "$hone" down >/dev/null 2>&1 || true
    rm -rf "$dir"
  fi
  exit "$status"
}
trap cleanup EXIT INT TERM

mkdir -p "$cache"
digest=$(sha256sum <"$requirements")
if [ "$(cat "$cache/mlflow.stamp" 2>/dev/null)" != "$digest" ]; then
  say "installing MLflow"
  rm -rf "$cache/mlflow"
  python3 -m venv "$cache/mlflow"
  timeout 600 "$cache/mlflow/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
  echo "$digest" >"$cache/mlflow.stamp"
fi

say "building"
hone=$(scripts/build.sh dev)/hone

say "starting Hone"
dir=$(mktemp -d "${TMPDIR:-/tmp}/mlflow.XXXXXX")
mkdir "$dir/mlflow"
MLFLOW_PORT=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export HONE_DATA_DIR=$dir/data MLFLOW_DIR=$dir/mlflow MLFLOW=$cache/mlflow/bin/mlflow MLFLOW_PORT
unset HONE_URL HONE_API_KEY
unset MLFLOW_TRACKING_TOKEN MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
export MLFLOW_TRACKING_URI=http://127.0.0.1:$MLFLOW_PORT MLFLOW_EXPERIMENT_NAME="hone's jobs"
HEARTBEAT_SECONDS=1 LEASE_SECONDS=15 RETRY_SECONDS=0 "$hone" up --port 0 --detach >/dev/null
"$hone" models import assets/hone-tiny --name hone-tiny >/dev/null
field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$HONE_DATA_DIR/connection.json" "$1"; }
HONE_URL=$(field url) HONE_API_KEY=$(field api_key)
export HONE_URL HONE_API_KEY

say "$("$MLFLOW" --version)"
(cd "$tests" && PYTHONDONTWRITEBYTECODE=1 timeout 600 python3 -m unittest --verbose ${1:+-k "$1"} test_mlflow)
say "mlflow: passed in $SECONDS s, build and start included"
