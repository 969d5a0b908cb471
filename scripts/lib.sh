# Shared by the scripts that run other people's clients and servers against Hone. Sourced, from the top of the checkout.
# shellcheck shell=bash

clients=$PWD/target/clients

say() { printf '\n== %s\n' "$*" >&2; }

# need_packages CHECK PACKAGE [CHECK PACKAGE …]: installs the packages whose check fails
need_packages() {
  local missing=()
  while [ $# -gt 0 ]; do
    sh -c "$1" >/dev/null 2>&1 || missing+=("$2")
    shift 2
  done
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

# install_once NAME FILES… -- COMMAND…: runs the command unless it succeeded for the same files before
install_once() {
  local stamp=$clients/$1.stamp files=() digest
  shift
  while [ "$1" != -- ]; do
    files+=("$1")
    shift
  done
  shift
  mkdir -p "$clients"
  digest=$(cat "${files[@]}" | sha256sum)
  [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ] && return
  "$@"
  echo "$digest" >"$stamp"
}

make_python() {
  rm -rf "${clients:?}/$1"
  python3 -m venv "$clients/$1"
  timeout 600 "$clients/$1/bin/pip" install --quiet --disable-pip-version-check --requirement "$2" >&2
}

# python_with NAME REQUIREMENTS: prints a Python that has what the file asks for
python_with() {
  install_once "$1" "$2" -- make_python "$1" "$2"
  echo "$clients/$1/bin/python"
}

# connection FIELD: of the Hone that runs in HONE_DATA_DIR
connection() {
  python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$HONE_DATA_DIR/connection.json" "$1"
}

# stop_hone_at_exit HONE DIR: ends what runs in DIR/data and removes DIR; after a failure the logs come first
stop_hone_at_exit() {
  hone_to_stop=$1 dir_to_remove=$2
  trap stop_hone EXIT INT TERM
}

stop_hone() {
  local status=$? log
  trap - EXIT INT TERM
  if [ "$status" -ne 0 ]; then
    for log in "$dir_to_remove"/*/*.log "$dir_to_remove"/data/logs/*; do
      printf '\n---- last lines of %s\n' "${log##*/}" >&2
      tail -n 40 "$log" >&2 || true
    done
  fi
  HONE_DATA_DIR=$dir_to_remove/data "$hone_to_stop" down >/dev/null 2>&1 || true
  rm -rf "$dir_to_remove"
  exit "$status"
}
