#!/usr/bin/env bash
# Lets schemathesis loose on every operation of the OpenAPI document: examples, boundary cases, random and stateful
# requests, with all its checks, against Hone with everything real (`hone up` in a temporary directory, with a trained
# job, a published version and a dataset in it).
#
#   scripts/test-schema.sh [OPTIONS OF schemathesis run, such as --include-operation-id list_jobs]
#
# Needs Debian (or Ubuntu) and, where packages are missing, root to install them. schemathesis, in the version of
# crates/backend/tests/schema, goes into target/clients. Leaves nothing running.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

tests=$PWD/crates/backend/tests/schema
# Bounds the fuzzing and stateful phases; the others end by themselves.
seconds=${SCHEMA_SECONDS:-150}

need_packages "python3 -c 'import ensurepip, venv'" python3-venv
python=$(python_with schemathesis "$tests/requirements.txt")

say "building"
hone=$(scripts/build.sh dev)/hone

say "starting Hone"
dir=$(mktemp -d "${TMPDIR:-/tmp}/schema.XXXXXX")
stop_hone_at_exit "$hone" "$dir"
export HONE_DATA_DIR=$dir/data
unset HONE_URL HONE_API_KEY
# Requests come as fast as they can, and a job too many is refused soon.
RATE_LIMIT_PER_MINUTE=0 AUTH_FAILURES_PER_MINUTE=0 HEARTBEAT_SECONDS=1 LEASE_SECONDS=10 MAX_UNFINISHED_JOBS=3 "$hone" up --port 0 --detach >/dev/null
"$hone" models import assets/hone-tiny --name hone-tiny >/dev/null
"$hone" datasets upload assets/demo/train.jsonl --name rows >/dev/null

say "schemathesis $("$python" -c 'from importlib.metadata import version; print(version("schemathesis"))')"
url=$(connection url)
cd "$dir"
"$(dirname "$python")/st" --config-file "$tests/schemathesis.toml" run "$url/openapi.json" \
  --header "Authorization: Bearer $(connection api_key)" --phases examples,coverage,fuzzing,stateful \
  --max-time "$seconds" "$@"
say "schema: passed in $SECONDS s, build and start included"
