#!/usr/bin/env bash
# Makes assets/hone-tiny again: corpus and tokenizer from Debian packages, then pretraining from random
# weights with hone-trainer. Takes about a quarter of an hour of two CPU cores.
#
#   scripts/make_base_model.sh [WORK_FOLDER]
#
# The same build, seeds and number of threads give the same weights, byte for byte.
# PYTHON must have the package `tokenizers` (pip install tokenizers==0.23.3); TRAINER may name a built
# hone-trainer; RESUME may name a checkpoint of an interrupted run.
set -euo pipefail
cd "$(dirname "$0")/.."

work=${1:-target/hone-tiny}
python=${PYTHON:-python3}
trainer=${TRAINER:-}
if [ -z "$trainer" ]; then
  trainer=$(scripts/build.sh release)/hone-trainer
fi

"$python" scripts/make_base_model.py "$work"
"$trainer" run --config scripts/make_base_model.yaml \
  --model "$work/model" --data "$work/corpus/train.txt" --validation "$work/corpus/validation.txt" \
  --out "$work/out" ${RESUME:+--resume "$RESUME"}

# The model card is written by hand (assets/hone-tiny/README.md); everything else is copied.
mkdir -p assets/hone-tiny
for file in config.json generation_config.json tokenizer.json tokenizer_config.json; do
  cp "$work/model/$file" assets/hone-tiny/
done
cp "$work/out/model.safetensors" assets/hone-tiny/
sha256sum assets/hone-tiny/model.safetensors
