#!/usr/bin/env bash
# A Kind cluster with Hone in it: builds the images, makes the cluster, loads, applies, waits, and trains one small model.
# Safe to run again: it updates what is there.
#
#   scripts/kind-setup.sh           settings as for scripts/images.sh
#
# Needs docker, kind and kubectl, and a way to Docker Hub for Postgres, the S3 server and Kind's own node.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/lib.sh

for program in docker kind kubectl python3; do
  command -v "$program" >/dev/null || { echo "$program is missing; docs/guides/kind.md says where to get it" >&2; exit 1; }
done

export TAG=dev
scripts/build-web.sh
scripts/images.sh backend storage-gateway trainer

if ! kind get clusters | grep -qx hone; then
  say "making the cluster"
  kind create cluster --config kind-config.yaml --wait 120s
fi
kubectl() { command kubectl --context kind-hone "$@"; }

say "loading the images"
kind load docker-image --name hone hone-backend:$TAG hone-storage-gateway:$TAG hone-trainer:$TAG

say "secrets"
kubectl apply -f k8s/base/namespaces.yaml
random() { python3 -c 'import secrets; print(secrets.token_hex(32))'; }
# secret NAME KEY=VALUE…: made once, kept afterwards. Values go by standard input: arguments can be seen by everybody.
secret() {
  local name=$1
  shift
  kubectl -n hone get secret "$name" >/dev/null 2>&1 && return
  printf '%s\n' "$@" | kubectl -n hone create secret generic "$name" --from-env-file=/dev/stdin
}
if ! kubectl -n hone get secret hone-backend >/dev/null 2>&1; then
  signing=$(random) password=$(random)
  secret postgres password="$password"
  secret hone-database url="postgres://hone:$password@postgres.hone.svc:5432/hone"
  secret hone-gateway token-signing-key="$signing" aws-access-key-id=hone aws-secret-access-key="$(random)"
  secret hone-backend token-signing-key="$signing" bootstrap-key="hone_sk_$(random)"
fi

# Signed URLs name one host, which this machine and pods must both reach: on Linux the node's address, elsewhere the name
# that Docker Desktop gives this machine.
if [ "$(uname -s)" = Linux ]; then
  node=$(docker inspect --format '{{.NetworkSettings.Networks.kind.IPAddress}}' hone-control-plane)
  public=http://$node:30900
else
  public=http://host.docker.internal:9000
fi
mkdir -p target/kind
cat >target/kind/kustomization.yaml <<YAML
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - ../../k8s/overlays/kind
configMapGenerator:
  - name: hone-gateway
    namespace: hone
    behavior: merge
    literals:
      - S3_PUBLIC_ENDPOINT=$public
YAML

say "applying"
kubectl apply -k target/kind
# The tag is the same as the last time, the images need not be.
kubectl -n hone rollout restart deployment/hone-gateway deployment/hone-backend
kubectl -n hone rollout status statefulset/postgres --timeout 300s
kubectl -n hone rollout status statefulset/s3 --timeout 300s
kubectl -n hone rollout status deployment/hone-gateway --timeout 300s
kubectl -n hone rollout status deployment/hone-backend --timeout 300s

say "training a small model"
key=$(kubectl -n hone get secret hone-backend --output go-template='{{index .data "bootstrap-key" | base64decode}}')
digest=$(scripts/e2e.sh http://127.0.0.1:8700 "$key")
cat <<TEXT

Hone runs at http://127.0.0.1:8700; the first adapter has the SHA-256 $digest.

  export HONE_URL=http://127.0.0.1:8700
  export HONE_API_KEY=\$(kubectl --context kind-hone -n hone get secret hone-backend -o go-template='{{index .data "bootstrap-key" | base64decode}}')
  hone jobs ls
  scripts/kind-teardown.sh      removes the cluster and everything in it
TEXT
