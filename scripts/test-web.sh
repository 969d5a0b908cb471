#!/usr/bin/env bash
# Tests the web UI: types, lints, logic, size, and in Debian's Chromium against everything real: `hone up` in a temporary
# directory with its Postgres, storage gateway and trainers, and the base model of this repository.
#
#   scripts/test-web.sh [NAME OF A TEST, as node's --test-name-pattern takes it]
#
# Pictures of every page are in target/web afterwards. Needs Debian (or Ubuntu) and, where packages are missing, root to
# install them. Leaves nothing running.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_packages "command -v chromium" chromium
scripts/build-web.sh

say "types, lints, logic"
(
  cd web
  npm run --silent typecheck
  npm run --silent lint
  npm run --silent test
  # The client's types are those of the API as it is.
  cp src/api/generated/schema.d.ts ../target/schema.d.ts
  npm run --silent types >/dev/null
  cmp -s ../target/schema.d.ts src/api/generated/schema.d.ts ||
    { echo "web/src/api/generated/schema.d.ts was stale and is new now: commit it" >&2; exit 1; }
)

say "building"
hone=$(scripts/build.sh dev)/hone

say "starting Hone"
dir=$(mktemp -d "${TMPDIR:-/tmp}/web.XXXXXX")
stop_hone_at_exit "$hone" "$dir"
export HONE_DATA_DIR=$dir/data
unset HONE_URL HONE_API_KEY
RATE_LIMIT_PER_MINUTE=60000 RATE_LIMIT_BURST=2000 "$hone" up --port 0 --detach >/dev/null
"$hone" models import assets/hone-tiny --name hone-tiny >/dev/null
HONE_URL=$(connection url) HONE_API_KEY=$(connection api_key)
HONE_CHROMIUM=$(command -v chromium)
HONE_ASSETS=$PWD/assets
HONE_PICTURES=$PWD/target/web
export HONE_URL HONE_API_KEY HONE_CHROMIUM HONE_ASSETS HONE_PICTURES
rm -rf "$HONE_PICTURES"
mkdir -p "$HONE_PICTURES"

say "in $(chromium --version 2>/dev/null)"
(cd web && timeout 900 node --test --test-concurrency=1 ${1:+--test-name-pattern "$1"} e2e/*.test.mjs)
say "web UI: passed in $SECONDS s, build and start included"
