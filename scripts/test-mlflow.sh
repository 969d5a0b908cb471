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

. scripts/lib.sh

tests=$PWD/crates/backend/tests/clients

need_packages "python3 -c 'import ensurepip, venv'" python3-venv
python=$(python_with mlflow "$tests/requirements-mlflow.txt")

say "building"
hone=$(scripts/build.sh dev)/hone

say "starting Hone"
dir=$(mktemp -d "${TMPDIR:-/tmp}/mlflow.XXXXXX")
mkdir "$dir/mlflow"
stop_hone_at_exit "$hone" "$dir"
MLFLOW_PORT=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
MLFLOW=$(dirname "$python")/mlflow
export HONE_DATA_DIR=$dir/data MLFLOW_DIR=$dir/mlflow MLFLOW MLFLOW_PORT
unset HONE_URL HONE_API_KEY
unset MLFLOW_TRACKING_TOKEN MLFLOW_TRACKING_USERNAME MLFLOW_TRACKING_PASSWORD
export MLFLOW_TRACKING_URI=http://127.0.0.1:$MLFLOW_PORT MLFLOW_EXPERIMENT_NAME="hone's jobs"
HEARTBEAT_SECONDS=1 LEASE_SECONDS=15 RETRY_SECONDS=0 "$hone" up --port 0 --detach >/dev/null
"$hone" models import assets/hone-tiny --name hone-tiny >/dev/null
HONE_URL=$(connection url) HONE_API_KEY=$(connection api_key)
export HONE_URL HONE_API_KEY

say "$("$MLFLOW" --version)"
(cd "$tests" && PYTHONDONTWRITEBYTECODE=1 timeout 600 python3 -m unittest --verbose ${1:+-k "$1"} test_mlflow)
say "mlflow: passed in $SECONDS s, build and start included"
