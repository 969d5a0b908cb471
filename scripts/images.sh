#!/usr/bin/env bash
# Builds Hone's images, prints their sizes, and writes an SBOM of each (CycloneDX) into target/sbom.
#
#   scripts/images.sh [backend|storage-gateway|trainer|trainer-cuda …]     default: all but trainer-cuda
#
#   TAG=0.1.0            tag of the images, hone-backend:0.1.0 … (dev)
#   BASE=hone-debian     where libraries come from (debian:bookworm-slim); of the release the programs were built on, or later
#   PROGRAMS=…           image with the programs, from deploy/build.Dockerfile; by default they are built here,
#   HONE_PROFILE=dev     in this profile (release), or taken from
#   HONE_BIN=DIR         this directory
#   CUDA=…               image that CUDA's libraries are taken from (trainer-cuda)
#
# Too large an image is an error when the programs are a release build.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/lib.sh

tag=${TAG:-dev}
profile=${HONE_PROFILE:-release}
images=("$@")
[ ${#images[@]} -gt 0 ] || images=(backend storage-gateway trainer)
programs=(hone hone-backend hone-gateway hone-trainer)
# Docker's own default is a plugin that Debian does not have.
export DOCKER_BUILDKIT=0

# Largest sizes in bytes. CUDA's libraries alone have 600 MB.
declare -A limit=([backend]=60000000 [storage-gateway]=60000000 [trainer]=100000000 [trainer-cuda]=2000000000)

take_programs() {
  local bin=${HONE_BIN:-} dir
  if [ -z "$bin" ]; then
    say "building the programs ($profile)"
    bin=$(scripts/build.sh "$profile")
  fi
  dir=$(mktemp -d)
  cp "${programs[@]/#/$bin/}" "$dir/"
  # A development build carries its symbols.
  strip --strip-unneeded "${programs[@]/#/$dir/}"
  tar -C "$dir" -c "${programs[@]}" | docker import - hone-programs >/dev/null
  rm -r "$dir"
}

scripts/setup-docker.sh
[ -n "${PROGRAMS:-}" ] || take_programs

version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
git diff --quiet HEAD 2>/dev/null || revision=$revision-changed
arguments=(--build-arg "PROGRAMS=${PROGRAMS:-hone-programs}" --build-arg "VERSION=$version"
  --build-arg "REVISION=$revision" --build-arg "CREATED=$(git log -1 --format=%cI 2>/dev/null || date -u +%FT%TZ)")
[ -z "${BASE:-}" ] || arguments+=(--build-arg "BASE=$BASE")

failed=0
mkdir -p target/sbom
for image in "${images[@]}"; do
  name=hone-$image:$tag
  say "$name"
  more=()
  [ "$image" != trainer-cuda ] || [ -z "${CUDA:-}" ] || more=(--build-arg "CUDA=$CUDA")
  # What a build needs of the checkout, and no more: the daemon is sent all of it.
  tar -c deploy/rootfs.sh "deploy/$image.Dockerfile" assets/hone-tiny | docker build --quiet --file "deploy/$image.Dockerfile" --tag "$name" \
    "${arguments[@]}" "${more[@]}" - >/dev/null
  size=$(docker image inspect --format '{{.Size}}' "$name")
  printf '%-28s %4d MB of at most %d MB\n' "$name" $(((size + 999999) / 1000000)) $((limit[$image] / 1000000))
  if [ "$profile" = release ] && [ "$size" -gt "${limit[$image]}" ]; then
    echo "$name is too large: $size bytes" >&2
    failed=1
  fi
  container=$(docker create "$name" none)
  docker cp "$container:/usr/share/hone/packages.txt" target/sbom/packages.txt >/dev/null
  docker rm "$container" >/dev/null
  scripts/sbom.py "${image%-cuda}" "$name" target/sbom/packages.txt >"target/sbom/hone-$image.cdx.json"
done
rm target/sbom/packages.txt
exit "$failed"
