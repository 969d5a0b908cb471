#!/usr/bin/env bash
# Makes Docker usable on this machine: installs Debian's docker.io where there is no daemon, and starts it where no
# service manager does. Silent when there is nothing to do.
#
#   scripts/setup-docker.sh          the daemon answers afterwards
#   scripts/setup-docker.sh --base   also makes the image hone-debian from Debian's packages, for machines that reach
#                                    a Debian mirror but no registry: BASE=hone-debian scripts/images.sh
#
# Needs root unless the daemon answers already.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/lib.sh

log=/var/log/hone-dockerd.log

answers() { docker info >/dev/null 2>&1; }

# start ARGUMENT…: the daemon in a session of its own, so that it outlives this script
start() {
  setsid dockerd "$@" </dev/null >"$log" 2>&1 &
  local pid=$! deadline=$((SECONDS + 30))
  until answers; do
    if ! kill -0 "$pid" 2>/dev/null || [ "$SECONDS" -ge "$deadline" ]; then
      kill "$pid" 2>/dev/null || true
      wait "$pid" 2>/dev/null || true
      return 1
    fi
    sleep 0.2
  done
}

start_daemon() {
  answers && return
  if [ -d /run/systemd/system ]; then
    systemctl start docker
    answers && return
  fi
  say "starting dockerd (log: $log)"
  # A kernel without overlayfs or without the tables of iptables still runs containers that talk to each other.
  start || start --storage-driver vfs || start --iptables=false || start --storage-driver vfs --iptables=false || {
    tail -n 20 "$log" >&2
    echo "dockerd does not start here; see $log" >&2
    exit 1
  }
}

make_base() {
  docker image inspect hone-debian >/dev/null 2>&1 && return
  need_packages 'command -v mmdebstrap' mmdebstrap
  local codename
  # The programs run on the release they were built on, or a later one.
  codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
  say "making hone-debian of $codename"
  mkdir -p target/containers
  mmdebstrap --quiet --variant=minbase --include=busybox-static,ca-certificates,libssl3 "$codename" \
    target/containers/base.tar
  docker import target/containers/base.tar hone-debian >/dev/null
  rm target/containers/base.tar
}

answers || need_packages 'command -v dockerd' docker.io
start_daemon
[ "${1:-}" != --base ] || make_base
