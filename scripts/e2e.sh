#!/usr/bin/env bash
# The same end-to-end run for every tier: imports the base model, uploads a dataset, publishes a package, launches it,
# follows the job, downloads the adapter and prints its SHA-256 as the only line on standard output.
#
#   scripts/e2e.sh URL KEY
#
# `hone` is the one in HONE_BIN (a directory), in target/release or in PATH. Everything it makes gets a name of its own,
# so it can run again and beside others. The digest is the same wherever HONE_THREADS, processor and build are.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -eq 2 ] || { sed -n '5s/^# *//p' "$0" >&2; exit 2; }

export HONE_URL=$1 HONE_API_KEY=$2
hone=hone
for dir in "${HONE_BIN:-}" target/release; do
  [ ! -x "$dir/hone" ] || { hone=$dir/hone; break; }
done
dir=$(mktemp -d "${TMPDIR:-/tmp}/e2e.XXXXXX")
trap 'rm -rf "$dir"' EXIT
name=e2e-$(date +%s)-$$

# field NAME: of the JSON object on standard input
field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$1"; }

{
  "$hone" models show hone-tiny >/dev/null 2>&1 || "$hone" models import assets/hone-tiny --name hone-tiny
  "$hone" datasets upload assets/demo/train.jsonl --validation assets/demo/validation.jsonl --name "$name"
  python3 - "$name" <<'PY' >"$dir/config.yaml"
import re, sys
text = open("assets/demo/train.yaml", encoding="utf-8").read()
text = re.sub(r"(?m)^dataset: .*", f"dataset: {sys.argv[1]}", text)
text = re.sub(r"(?m)^  (eval|save)_steps: .*", r"  \1_steps: 20", text)
print(text + "  max_steps: 30")
PY
  "$hone" packages draft "$name" "$dir/config.yaml" --summary "end to end"
  "$hone" packages publish "$name"
  job=$("$hone" --json packages launch "$name" | field id)
  "$hone" jobs show "$job" --follow
  "$hone" jobs artifacts "$job" --download "$dir/adapter"
} >&2
sha256sum <"$dir/adapter/adapter_model.safetensors" | cut -d ' ' -f 1
