#!/usr/bin/env bash
# Checks what nobody compiles: Kubernetes manifests, compose file, alert rules, an SBOM, and what documentation says of
# them.
#
#   scripts/test-manifests.sh
#
# Renders every overlay with kustomize, validates the result strictly against Kubernetes 1.34, lets checkov judge it
# (what it may not ask for is skipped where it stands, with the reason), and compares names with code and documentation.
# The tools come from Debian and PyPI, into target/clients. Starts nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

. scripts/lib.sh

version=1.34
need_packages "python3 -c 'import ensurepip, venv'" python3-venv 'command -v promtool' prometheus \
  'docker compose version || command -v docker-compose' docker-compose \
  'kubectl kustomize --help || command -v kustomize' kubernetes-client
python=$(python_with manifests deploy/requirements.txt)
bin=$(dirname "$python")

out=target/manifests
rm -rf "$out"
mkdir -p "$out"
manifests=k8s
render() { if command -v kustomize >/dev/null; then kustomize build "$1"; else kubectl kustomize "$1"; fi; }
if ! render k8s/overlays/kind >/dev/null 2>&1; then
  # Debian's kubectl has a kustomize of 2019, which takes directories under another name.
  cp -r k8s "$out/k8s"
  manifests=$out/k8s
  sed -i -z 's,resources:\n  - ../../base\n,bases:\n  - ../../base\nresources:\n,' "$manifests"/overlays/*/kustomization.yaml
fi
for overlay in "$manifests"/overlays/*/; do
  name=$(basename "$overlay")
  say "overlay $name"
  render "$overlay" >"$out/$name.yaml"
  "$bin/kubernetes-validate" --strict --kubernetes-version "$version" "$out/$name.yaml" >"$out/$name.validated" ||
    { cat "$out/$name.validated" >&2; exit 1; }
  PYTHONWARNINGS=ignore "$bin/checkov" --file "$out/$name.yaml" --framework kubernetes --quiet --compact \
    --skip-download --output cli
done

say "compose file"
compose=(docker compose)
docker compose version >/dev/null 2>&1 || compose=(docker-compose)
env HONE_HOST=h HONE_API_KEY=k POSTGRES_PASSWORD=p AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=s TOKEN_SIGNING_KEY=t \
  TRAINER_SERVICE_TOKEN=t "${compose[@]}" --file deploy/compose.yaml config >"$out/compose.yaml"

say "alert rules"
promtool check config deploy/prometheus/prometheus.yaml
promtool test rules deploy/prometheus/rules.test.yaml

say "SBOM"
echo 'libc6 2.36-9+deb12u14 glibc' >"$out/packages.txt"
scripts/sbom.py trainer hone-trainer:test "$out/packages.txt" >"$out/sbom.json"
"$python" - "$out/sbom.json" <<'PY'
import json, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
text = open(sys.argv[1], encoding="utf-8").read()
if wrong := JsonStrictValidator(SchemaVersion.V1_5).validate_str(text):
    sys.exit(f"the SBOM is no CycloneDX 1.5: {wrong.data}")
found = {c["name"] for c in json.loads(text)["components"]}
# What the trainer is, what it needs, what it does not, and what came from Debian.
if not {"trainer", "candle-core", "libc6"} <= found or "diesel" in found:
    sys.exit(f"the SBOM lists the wrong components: {sorted(found)}")
print(f"{len(found)} components")
PY

say "names"
"$python" scripts/check_deploy.py "$out"
say "manifests: passed in $SECONDS s"
