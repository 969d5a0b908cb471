#!/usr/bin/env bash
# Installs what building and running Hone need and this machine lacks. Safe to run again; silent when there is
# nothing to do. Debian and Ubuntu are served with apt; elsewhere it says what to install.
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }
have() { command -v "$1" >/dev/null 2>&1; }

have_postgres() {
  have postgres && have initdb && return
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || compgen -G '/opt/homebrew/opt/postgresql*/bin/initdb' >/dev/null ||
    compgen -G '/usr/local/opt/postgresql*/bin/initdb' >/dev/null || [ -n "${HONE_POSTGRES_BIN:-}" ]
}

# Prints the packages that are missing.
missing_debian() {
  have_postgres || echo postgresql
  { have cc && have c++; } || echo build-essential
  have mold || echo mold
  have pkg-config || echo pkg-config
  have curl || echo curl
  have python3 || echo python3
  [ -e /usr/include/openssl/ssl.h ] || echo libssl-dev
  [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
  # For the tests that set clocks wrong.
  compgen -G '/usr/lib/*/faketime/libfaketime.so.1' >/dev/null || echo libfaketime
}

setup_debian() {
  local packages sudo=()
  mapfile -t packages < <(missing_debian)
  [ ${#packages[@]} -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    have sudo || { say "missing: ${packages[*]}; install them as root: apt-get install ${packages[*]}"; exit 1; }
    sudo=(sudo)
  fi
  say "installing ${packages[*]}"
  local log
  log=$(mktemp)
  # Hone starts a Postgres of its own; the one Debian would start on port 5432 is not wanted by anybody here.
  if [[ " ${packages[*]} " == *" postgresql "* && ! -e /etc/postgresql-common/createcluster.conf ]]; then
    "${sudo[@]}" mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' | "${sudo[@]}" tee /etc/postgresql-common/createcluster.conf >/dev/null
  fi
  local install=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${packages[@]}")
  if ! { "${sudo[@]}" apt-get update && "${install[@]}"; } >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    say "installing failed; see above"
    exit 1
  fi
  rm -f "$log"
}

if have apt-get; then
  setup_debian
elif [ "$(uname -s)" = Darwin ]; then
  missing=()
  have_postgres || missing+=(postgresql@17)
  have pkg-config || missing+=(pkg-config)
  [ ${#missing[@]} -eq 0 ] || { say "missing: ${missing[*]}; install them with: brew install ${missing[*]}"; exit 1; }
else
  have_postgres || { say "missing: the Postgres server (initdb); install your system's package of it"; exit 1; }
  { have cc && have c++; } || { say "missing: a C and C++ compiler; install your system's package of them"; exit 1; }
fi

if ! have cargo; then
  say "missing: Rust 1.95 or newer; install it from https://rustup.rs, then run this again"
  exit 1
fi
version=$(rustc --version | awk '{print $2}')
if [ "$(printf '%s\n1.95.0\n' "$version" | sort -V | head -n 1)" != 1.95.0 ]; then
  say "Rust is $version, and Hone needs 1.95 or newer: rustup update stable"
  exit 1
fi
