#!/usr/bin/env bash
# Two backends on one database, twenty jobs that train behind them, and one backend after the other killed and started
# again, twice. No request may fail that a client repeats, no event may be lost, no job may start again.
#
#   scripts/test-rolling.sh
#
# Settings as for scripts/e2e-containers.sh. Leaves nothing running. Three minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/lib.sh
. scripts/containers.sh

jobs=20
export TAG=${TAG:-e2e}
if [ -z "${HONE_BIN:-}" ]; then
  say "building"
  HONE_BIN=$(scripts/build.sh "${HONE_PROFILE:-release}")
fi
export HONE_BIN
if [ -z "${BASE:-}" ]; then
  scripts/setup-docker.sh --base
  export BASE=hone-debian
fi
scripts/images.sh backend storage-gateway trainer
need_packages 'command -v psql' postgresql-client

say "starting the containers"
unset HONE_URL HONE_API_KEY
containers_begin "hone-rolling-$$"
start_stores
start_gateway
start_trainer --env HONE_THREADS=1 --env MAX_CONCURRENT_JOBS="$jobs"
await 60 "the gateway's health" healthy gateway
await 60 "the trainer's health" healthy trainer
for name in backend-a backend-b; do
  start_backend "$name" --env MAX_CONCURRENT_JOBS="$jobs"
  await 60 "the health of $name" healthy "$name"
done
export HONE_URL HONE_API_KEY=$api_key
HONE_URL=http://$(address backend-a):8700
"$HONE_BIN/hone" models import assets/hone-tiny --name hone-tiny
"$HONE_BIN/hone" datasets upload assets/demo/train.jsonl --name demo

say "training $jobs jobs"
DATABASE_URL="postgres://hone:$database_password@$(address postgres):5432/postgres"
export DATABASE_URL
scripts/test_rolling.py "$jobs" "$net-backend-a" "$net-backend-b"
say "rolling restart: passed in $SECONDS s, building included"
