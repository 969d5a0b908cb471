#!/usr/bin/env bash
# From nothing to a trained adapter: installs what is missing, builds, starts everything in ./.hone-demo, imports
# the base model, uploads the dataset, trains with live progress, and compares base and tuned model.
#
#   HONE_PROFILE=dev   faster to build, slower to run
#   DEMO_SET="training.max_steps=20 …"   changes to the training configuration
set -euo pipefail
cd "$(dirname "$0")/.."

title() { printf '\n\033[1m── %s\033[0m\n' "$*"; }

title "Setup"
scripts/setup.sh
echo "everything needed is installed"

title "Build (${HONE_PROFILE:-release})"
if command -v npm >/dev/null && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 20 ]; then
  scripts/build-web.sh
  ui="/ui/"
else
  echo "without Node 20 or newer there is no web UI in the programs; everything else is"
  ui=""
fi
bin=$(scripts/build.sh "${HONE_PROFILE:-release}")
hone=$bin/hone
export HONE_DATA_DIR=$PWD/.hone-demo
unset HONE_URL HONE_API_KEY

title "Start"
"$hone" up --port 0 --detach

title "Base model"
"$hone" models import assets/hone-tiny --name hone-tiny

title "Dataset"
if ! "$hone" datasets show demo >/dev/null 2>&1; then
  "$hone" datasets upload assets/demo/train.jsonl --validation assets/demo/validation.jsonl --name demo
else
  "$hone" datasets show demo
fi
echo
"$hone" datasets preview demo -n 2

title "Train"
sets=()
for assignment in ${DEMO_SET:-}; do
  sets+=(--set "$assignment")
done
"$hone" train assets/demo/train.yaml --follow "${sets[@]}"

title "Base and tuned model, side by side"
# The first short rows that training has not seen.
mapfile -t prompts < <(python3 - assets/demo/validation.jsonl <<'PY'
import json, sys
rows = (json.loads(line) for line in open(sys.argv[1], encoding="utf-8"))
prompts = (next(m["content"] for m in row["messages"] if m["role"] == "user") for row in rows)
print(*[p for p in prompts if len(p) < 100][:3], sep="\n")
PY
)
for prompt in "${prompts[@]}"; do
  "$hone" chat latest --compare --temperature 0 --max-tokens 40 --prompt "$prompt"
  echo
done

title "Done"
url=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["url"])' "$HONE_DATA_DIR/connection.json")
cat <<TEXT
Hone runs at $url$ui (key in .hone-demo/connection.json).

  export HONE_DATA_DIR=$HONE_DATA_DIR
  $hone jobs ls                                       what was trained
  $hone jobs artifacts latest --download ./adapter    the adapter, for PEFT
  $hone chat latest --compare                         talk to it
  $hone down                                          stop everything; 'rm -r .hone-demo' removes it
TEXT
