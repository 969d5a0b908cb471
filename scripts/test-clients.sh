#!/usr/bin/env bash
# Runs OpenAI's own clients (Python, Node), unmodified, against Hone with everything real: `hone up` in a temporary
# directory with its Postgres, storage gateway and trainers, and the base model of this repository.
#
#   scripts/test-clients.sh [NAME OF A TEST, as python's unittest -k takes it]
#
# Needs Debian (or Ubuntu) and, where packages are missing, root to install them. The clients, in the versions of
# crates/backend/tests/clients, go into target/clients. Leaves nothing running; ends within a few minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/lib.sh

tests=$PWD/crates/backend/tests/clients
node=$clients/node

make_node() {
  rm -rf "$node"
  mkdir -p "$node"
  cp "$tests"/package*.json "$node/"
  (cd "$node" && timeout 300 npm ci --silent --no-audit --no-fund --ignore-scripts)
}

need_packages "python3 -c 'import ensurepip, venv'" python3-venv "command -v node" nodejs "command -v npm" npm
python=$(python_with python "$tests/requirements.txt")
install_once node "$tests/package.json" "$tests/package-lock.json" -- make_node

say "building"
hone=$(scripts/build.sh dev)/hone

say "starting Hone"
dir=$(mktemp -d "${TMPDIR:-/tmp}/clients.XXXXXX")
stop_hone_at_exit "$hone" "$dir"
export HONE_DATA_DIR=$dir/data HONE_QUOTA=5
unset HONE_URL HONE_API_KEY OPENAI_API_KEY OPENAI_BASE_URL OPENAI_ORG_ID OPENAI_PROJECT_ID
# A job that is to be cancelled is soon gone; a job too many is refused.
HEARTBEAT_SECONDS=1 LEASE_SECONDS=10 MAX_UNFINISHED_JOBS=$HONE_QUOTA "$hone" up --port 0 --detach >/dev/null
"$hone" models import assets/hone-tiny --name hone-tiny >/dev/null
HONE_URL=$(connection url) HONE_API_KEY=$(connection api_key)
export HONE_URL HONE_API_KEY

say "openai for Python $("$python" -c 'import openai; print(openai.__version__)')"
(cd "$tests" && PYTHONDONTWRITEBYTECODE=1 timeout 600 "$python" -m unittest --verbose ${1:+-k "$1"} test_openai)

# Modules are looked for beside the file that imports them.
say "openai for Node $(node -p 'JSON.parse(fs.readFileSync(process.argv[1])).version' "$node/node_modules/openai/package.json")"
cp "$tests"/*.mjs "$node/"
(cd "$node" && timeout 600 node --test ${1:+--test-name-pattern "$1"} openai.test.mjs)
say "clients: passed in $SECONDS s, build and start included"
