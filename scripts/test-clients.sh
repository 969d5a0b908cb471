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

tests=$PWD/crates/backend/tests/clients
cache=$PWD/target/clients

say() { printf '\n== %s\n' "$*" >&2; }

install_missing() {
  local missing=()
  python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
  command -v node >/dev/null || missing+=(nodejs)
  command -v npm >/dev/null || missing+=(npm)
  [ ${#missing[@]} -eq 0 ] && return
  if [ "$(id -u)" -ne 0 ]; then
    echo "these packages are missing: ${missing[*]}; install them or run this script as root" >&2
    exit 1
  fi
  say "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  timeout 120 apt-get -qq update
  timeout 600 apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
}

# install NAME FILES… -- COMMAND…: runs the command unless it succeeded for the same files before
install() {
  local stamp=$cache/$1.stamp files=() digest
  shift
  while [ "$1" != -- ]; do
    files+=("$1")
    shift
  done
  shift
  digest=$(cat "${files[@]}" | sha256sum)
  [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ] && return
  "$@"
  echo "$digest" >"$stamp"
}

install_python() {
  rm -rf "$cache/python"
  python3 -m venv "$cache/python"
  timeout 300 "$cache/python/bin/pip" install --quiet --disable-pip-version-check --requirement "$tests/requirements.txt"
}

install_node() {
  rm -rf "$cache/node"
  mkdir -p "$cache/node"
  cp "$tests"/package*.json "$cache/node/"
  (cd "$cache/node" && timeout 300 npm ci --silent --no-audit --no-fund --ignore-scripts)
}

dir=
# shellcheck disable=SC2329 # called by the trap
cleanup() {
  local status=$? log
  trap - EXIT INT TERM
  if [ -n "$dir" ]; then
    if [ "$status" -ne 0 ]; then
      for log in "$dir"/data/logs/*; do
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

install_missing
mkdir -p "$cache"
install python "$tests/requirements.txt" -- install_python
install node "$tests/package.json" "$tests/package-lock.json" -- install_node

say "building"
hone=$(scripts/build.sh dev)/hone

say "starting Hone"
dir=$(mktemp -d "${TMPDIR:-/tmp}/clients.XXXXXX")
export HONE_DATA_DIR=$dir/data HONE_QUOTA=5
unset HONE_URL HONE_API_KEY OPENAI_API_KEY OPENAI_BASE_URL OPENAI_ORG_ID OPENAI_PROJECT_ID
# A job that is to be cancelled is soon gone; a job too many is refused.
HEARTBEAT_SECONDS=1 LEASE_SECONDS=10 MAX_UNFINISHED_JOBS=$HONE_QUOTA "$hone" up --port 0 --detach >/dev/null
"$hone" models import assets/hone-tiny --name hone-tiny >/dev/null
field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$HONE_DATA_DIR/connection.json" "$1"; }
HONE_URL=$(field url) HONE_API_KEY=$(field api_key)
export HONE_URL HONE_API_KEY

say "openai for Python $("$cache/python/bin/python" -c 'import openai; print(openai.__version__)')"
(cd "$tests" && PYTHONDONTWRITEBYTECODE=1 timeout 600 "$cache/python/bin/python" -m unittest --verbose ${1:+-k "$1"} test_openai)

# Modules are looked for beside the file that imports them.
say "openai for Node $(node -p 'JSON.parse(fs.readFileSync(process.argv[1])).version' "$cache/node/node_modules/openai/package.json")"
cp "$tests"/*.mjs "$cache/node/"
(cd "$cache/node" && timeout 600 node --test ${1:+--test-name-pattern "$1"} openai.test.mjs)
say "clients: passed in $SECONDS s, build and start included"
