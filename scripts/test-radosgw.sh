#!/usr/bin/env bash
# Runs the storage gateway's tests against an S3 server we did not write: Ceph's radosgw, as a one-node
# cluster on loopback (one monitor, one OSD in memory, one gateway) in a temporary directory.
#
#   scripts/test-radosgw.sh [ARGUMENT OF cargo test…]
#
# Needs Debian (or Ubuntu) and, where the packages are missing, root to install them. Takes ports that are
# free, leaves nothing behind, ends within a few minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/lib.sh

free_ports() {
  python3 -c '
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in sockets:
    s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))' "$1"
}

pids=()
dir=
# shellcheck disable=SC2329 # called by the trap
cleanup() {
  local status=$? log
  trap - EXIT INT TERM
  [ ${#pids[@]} -eq 0 ] || kill -9 "${pids[@]}" 2>/dev/null || true
  if [ "$status" -ne 0 ] && [ -n "$dir" ]; then
    for log in "$dir"/*.log; do
      printf '\n---- last lines of %s\n' "${log##*/}" >&2
      tail -n 40 "$log" >&2 || true
    done
  fi
  wait 2>/dev/null || true
  [ -z "$dir" ] || rm -rf "$dir"
  exit "$status"
}
trap cleanup EXIT INT TERM

# start NAME COMMAND…: runs a daemon in the foreground of a background job
start() {
  local name=$1
  shift
  "$@" >>"$dir/$name.log" 2>&1 &
  pids+=($!)
}

# await SECONDS WHAT COMMAND…: until the command succeeds; fails at once when a daemon has died
await() {
  local limit=$1 what=$2 deadline pid
  shift 2
  deadline=$((SECONDS + limit))
  until timeout 10 "$@" >>"$dir/await.log" 2>&1; do
    for pid in "${pids[@]}"; do
      kill -0 "$pid" 2>/dev/null || { echo "a Ceph daemon died while waiting for $what" >&2; exit 1; }
    done
    [ "$SECONDS" -lt "$deadline" ] || { echo "$what did not happen within $limit s" >&2; exit 1; }
    sleep 0.3
  done
}

# No services of theirs: this script starts its own daemons.
need_packages 'command -v ceph-mon' ceph-mon 'command -v ceph-osd' ceph-osd 'command -v radosgw' radosgw \
  'command -v radosgw-admin' radosgw 'command -v ceph' ceph-common 'command -v curl' curl

# By target and not by package: the workspace's features are compiled already.
tests=(--workspace)
for file in crates/storage-gateway/tests/*.rs; do
  tests+=(--test "$(basename "$file" .rs)")
done
say "building the tests"
cargo test "${tests[@]}" --no-run

say "starting Ceph"
dir=$(mktemp -d "${TMPDIR:-/tmp}/radosgw.XXXXXX")
read -r mon_port rgw_port < <(free_ports 2)
fsid=$(cat /proc/sys/kernel/random/uuid)
osd=$(cat /proc/sys/kernel/random/uuid)
mkdir "$dir"/{mon,osd,rgw,crash}
cat >"$dir/ceph.conf" <<EOF
[global]
fsid = $fsid
mon_initial_members = a
mon_host = [v2:127.0.0.1:$mon_port/0]
ms_bind_msgr1 = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
# Loopback only, gone in minutes: no keys between the daemons.
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
run_dir = $dir
admin_socket = $dir/\$name.asok
pid_file =
log_file =
log_to_stderr = true
crash_dir = $dir/crash
mon_data = $dir/mon
osd_data = $dir/osd
rgw_data = $dir/rgw
mon_data_avail_warn = 1
mon_data_avail_crit = 1
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
memstore_device_bytes = 8589934592
osd_memory_target = 939524096
# Otherwise the OSD measures its "disk" for half a minute.
osd_mclock_skip_benchmark = true
rgw_frontends = beast endpoint=127.0.0.1:$rgw_port
rgw_thread_pool_size = 64
EOF
export CEPH_CONF="$dir/ceph.conf" CEPH_ARGS="--conf $dir/ceph.conf"

monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$mon_port/0]" "$dir/monmap" >>"$dir/mon.log" 2>&1
ceph-mon -i a --mkfs --monmap "$dir/monmap" >>"$dir/mon.log" 2>&1
start mon ceph-mon -f -i a
await 30 "a quorum of the monitor" ceph --connect-timeout 5 mon stat
ceph osd new "$osd" >>"$dir/osd.log" 2>&1
ceph-osd -i 0 --mkfs --osd-uuid "$osd" >>"$dir/osd.log" 2>&1
start osd ceph-osd -f -i 0
await 60 "the start of the OSD" sh -c 'ceph --connect-timeout 5 osd stat | grep -q "1 up"'

access_key=TESTACCESSKEY0000000
secret_key=testsecret/with+odd=characters0000000000
timeout 60 radosgw-admin user create --uid test --display-name test \
  --access-key "$access_key" --secret-key "$secret_key" >>"$dir/rgw.log" 2>&1
start rgw radosgw -f -n client.rgw
await 60 "the start of radosgw" curl -sf -o /dev/null "http://127.0.0.1:$rgw_port/"

say "running the tests against radosgw $(radosgw --version | cut -d' ' -f3)"
unset CEPH_CONF CEPH_ARGS
HONE_TEST_S3_ENDPOINT="http://127.0.0.1:$rgw_port" AWS_ACCESS_KEY_ID=$access_key AWS_SECRET_ACCESS_KEY=$secret_key \
  timeout 300 cargo test "${tests[@]}" "$@"
say "radosgw: passed in $SECONDS s, build and start included"
