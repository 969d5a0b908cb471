#!/usr/bin/env bash
# Builds the web UI into web/dist, which the backend takes in when it is built next. Needs Node 20 or newer with npm.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

need_packages "command -v node" nodejs "command -v npm" npm
if [ "$(node -p 'process.versions.node.split(".")[0]')" -lt 20 ]; then
  echo "Node is $(node --version), and the web UI needs 20 or newer: https://nodejs.org" >&2
  exit 1
fi

# Not `npm ci`: it refuses a lock file without the optional packages of other systems, which not every registry has.
make_modules() {
  (cd web && timeout 600 npm install --no-save --silent --no-audit --no-fund --ignore-scripts)
}

[ -d web/node_modules ] || rm -f "$clients/web.stamp"
install_once web web/package.json web/package-lock.json -- make_modules
cd web
npm run --silent build >&2
# The listing is for whoever asks; here it is a check.
npm run --silent sizes | tail -n 1 >&2
