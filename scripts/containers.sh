# Runs Hone's containers on this machine with plain `docker run`: non-root, read-only roots, no capabilities, on a
# network of their own. Sourced after lib.sh, from the top of the checkout, by the scripts that test containers.
# Stands in for what production brings: Postgres is this machine's, laid out by deploy/rootfs.sh; the S3 server is the
# gateway's embedded one, in a container of its own.
# shellcheck shell=bash

net=
containers=()
run_dir=

random() { python3 -c 'import secrets; print(secrets.token_hex(32))'; }

# containers_begin NAME: a network, and a directory for secrets
containers_begin() {
  net=$1
  run_dir=$(mktemp -d "${TMPDIR:-/tmp}/$1.XXXXXX")
  trap containers_end EXIT INT TERM
  docker network create "$net" >/dev/null
  signing_key=$(random) api_key=hone_sk_$(random) database_password=$(random) trainer_token=$(random)
}

containers_end() {
  local status=$? container
  trap - EXIT INT TERM
  if [ "$status" -ne 0 ]; then
    for container in "${containers[@]}"; do
      printf '\n---- last lines of %s\n' "$container" >&2
      docker logs --tail 40 "$container" >&2 2>&1 || true
    done
  fi
  [ ${#containers[@]} -eq 0 ] || docker rm --force --volumes "${containers[@]}" >/dev/null 2>&1 || true
  docker network rm "$net" >/dev/null 2>&1 || true
  [ -z "${hone_to_stop:-}" ] || HONE_DATA_DIR=$run_dir/up "$hone_to_stop" down >/dev/null 2>&1 || true
  rm -rf "$run_dir"
  exit "$status"
}

# container NAME ALIAS ARGUMENT…: starts it; ARGUMENTs are those of `docker run` from the options on
container() {
  local name=$net-$1 alias=$2
  shift 2
  containers+=("$name")
  docker run --detach --name "$name" --network "$net" --network-alias "$alias" --read-only --tmpfs /tmp:mode=1777 \
    --user 65532:65532 --cap-drop ALL --security-opt no-new-privileges --pids-limit 1024 "$@" >/dev/null
}

# address NAME: on the network; this machine reaches it, too
address() {
  docker inspect --format "{{(index .NetworkSettings.Networks \"$net\").IPAddress}}" "$net-$1"
}

# await SECONDS WHAT COMMAND…
await() {
  local limit=$1 what=$2 deadline
  shift 2
  deadline=$((SECONDS + limit))
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || { echo "$what did not happen within $limit s" >&2; return 1; }
    sleep 0.2
  done
}

healthy() { [ "$(docker inspect --format '{{.State.Health.Status}}' "$net-$1")" = healthy ]; }

# Postgres of this machine's Debian package, as an image; made again when this file or rootfs.sh has changed.
make_postgres_image() {
  postgres_image=hone-test-postgres:$(cat scripts/containers.sh deploy/rootfs.sh | sha256sum | cut -c 1-12)
  docker image inspect "$postgres_image" >/dev/null 2>&1 && return
  need_packages 'compgen -G "/usr/lib/postgresql/*/bin/postgres" || ls /usr/lib/postgresql/*/bin/postgres' postgresql \
    'command -v busybox' busybox-static
  local home share root
  home=$(find /usr/lib/postgresql -mindepth 1 -maxdepth 1 | sort -V | tail -n 1)
  share=/usr/share/postgresql/${home##*/}
  root=$(mktemp -d)
  say "making an image of Postgres ${home##*/}"
  # initdb calls a shell; snowball and plpgsql are what it loads. /bin/sh is busybox.
  deploy/rootfs.sh "$root" "$home"/bin/{initdb,postgres} "$home"/lib/{plpgsql,dict_snowball}.so "$(command -v busybox)"
  tar -C / -c "${share#/}" usr/share/zoneinfo/{Etc,UTC} | tar -C "$root" -x
  ln -s busybox "$root/bin/sh"
  mkdir -m 700 "$root/data"
  chown 65532:65532 "$root/data"
  cat >"$root/usr/bin/start-postgres" <<START
#!/bin/sh
set -e
export PATH=$home/bin:/usr/bin
if [ ! -e /data/PG_VERSION ]; then
  echo "\$POSTGRES_PASSWORD" >/tmp/password
  initdb --pgdata /data --username hone --pwfile /tmp/password --auth scram-sha-256 --encoding UTF8 --no-locale --no-sync
  busybox rm /tmp/password
  echo 'host all all all scram-sha-256' >>/data/pg_hba.conf
fi
exec postgres -D /data -c listen_addresses='*' -c unix_socket_directories=/tmp -c max_connections=200
START
  chmod +x "$root/usr/bin/start-postgres"
  tar -C "$root" -c . | docker import --change 'USER 65532:65532' --change 'VOLUME /data' \
    --change 'ENTRYPOINT ["/usr/bin/start-postgres"]' - "$postgres_image" >/dev/null
  rm -r "$root"
}

# start_stores: Postgres and an S3 server
start_stores() {
  make_postgres_image
  container postgres postgres --env POSTGRES_PASSWORD="$database_password" "$postgres_image"
  container s3 s3 --env TOKEN_SIGNING_KEY="$(random)" --env S3_LISTEN=0.0.0.0:9000 --volume /data "hone-storage-gateway:$TAG"
  await 30 "the start of the S3 server" docker cp "$net-s3:/data/s3-credentials.json" "$run_dir/s3.json"
}

# s3_key FIELD: of the key pair that the S3 server made
s3_key() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$run_dir/s3.json" "$1"; }

# start_gateway
start_gateway() {
  container gateway gateway --env S3_ENDPOINT="http://$(address s3):9000" --env TOKEN_SIGNING_KEY="$signing_key" \
    --env AWS_ACCESS_KEY_ID="$(s3_key access_key)" --env AWS_SECRET_ACCESS_KEY="$(s3_key secret_key)" \
    "hone-storage-gateway:$TAG"
}

# start_trainer ARGUMENT…: the trainer service
start_trainer() {
  container trainer trainer --tmpfs /scratch:uid=65532,mode=0700 --env TRAINER_SERVICE_TOKEN="$trainer_token" "$@" \
    "hone-trainer:$TAG"
}

# start_backend NAME ARGUMENT…: one that answers to the name `backend`
start_backend() {
  local name=$1
  shift
  container "$name" backend --env DATABASE_URL="postgres://hone:$database_password@postgres:5432/postgres" \
    --env STORAGE_GATEWAY_URL=http://gateway:8701 --env BACKEND_BASE_URL=http://backend:8700 \
    --env TOKEN_SIGNING_KEY="$signing_key" --env HONE_BOOTSTRAP_KEY="$api_key" --env TRAINING_MODE=http \
    --env TRAINER_SERVICE_URL=http://trainer:8702 --env TRAINER_SERVICE_TOKEN="$trainer_token" "$@" "hone-backend:$TAG"
}
