#!/usr/bin/env bash
# Trains the same package in containers and in `hone up`, with the same programs, and compares the adapters' digests.
#
#   scripts/e2e-containers.sh
#
#   HONE_PROFILE=dev   what to build (release), or HONE_BIN: a directory with the programs
#   BASE=…             as for scripts/images.sh; by default made of Debian packages (scripts/setup-docker.sh --base)
#
# The containers: Postgres, an S3 server, gateway, trainer service, backend; see scripts/containers.sh. Leaves nothing
# running, and its images, which the next run uses.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/lib.sh
. scripts/containers.sh

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

say "starting the containers"
unset HONE_URL HONE_API_KEY
containers_begin "hone-e2e-$$"
start_stores
start_gateway
# The adapter's bytes depend on the number of threads.
start_trainer --env HONE_THREADS=2
await 60 "the gateway's health" healthy gateway
await 60 "the trainer's health" healthy trainer
start_backend backend
await 60 "the backend's health" healthy backend
url=http://$(address backend):8700
await 20 "the backend's readiness" curl -sf "$url/ready"
say "containers are healthy after $SECONDS s; training in them"
in_containers=$(scripts/e2e.sh "$url" "$api_key")

say "what the containers may do, and what they wrote"
for name in gateway trainer backend; do
  docker inspect --format '{{.Name}}: user {{.Config.User}}, read-only root {{.HostConfig.ReadonlyRootfs}}' "$net-$name"
  # Mount points of what was asked for do not count as written.
  changed=$(docker diff "$net-$name" | grep -v -E '^[AC] /(tmp|scratch|data)?$' || true)
  [ -z "$changed" ] || { echo "$net-$name changed its root: $changed" >&2; exit 1; }
done

say "training the same in \`hone up\`"
export HONE_DATA_DIR=$run_dir/up
hone_to_stop=$HONE_BIN/hone
HONE_THREADS=2 "$HONE_BIN/hone" up --port 0 --detach >/dev/null
in_processes=$(scripts/e2e.sh "$(connection url)" "$(connection api_key)")

printf 'containers  %s\nprocesses   %s\n' "$in_containers" "$in_processes"
[ "$in_containers" = "$in_processes" ] || { echo "the adapters differ" >&2; exit 1; }
say "containers: the same adapter, in $SECONDS s, building included"
