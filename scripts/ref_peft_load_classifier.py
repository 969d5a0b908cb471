#!/usr/bin/env python3
"""Loads our classifier's adapter with PEFT and compares its logits with ours; exits 1 when they differ by more than 1e-4.

  scripts/ref_peft_load_classifier.py MODEL_DIR ADAPTER_DIR ROWS.jsonl LOGITS_FILE

ROWS.jsonl holds `{"text", ...}` per line, LOGITS_FILE what our trainer computed for those texts, as safetensors with
`logits` (rows, classes). The trainer's test leaves both adapter and logits in target/tmp/ENCODER:

  scripts/ref_peft_load_classifier.py crates/trainer/tests/fixtures/ref_encoders/bert/model target/tmp/bert \\
      crates/trainer/tests/fixtures/ref_encoders/train.jsonl target/tmp/bert/logits.safetensors

The base model's own classifier is scrambled before, so that only the adapter's can give the right answers.
Checked with torch 2.15.0, transformers 5.23.0, peft 0.21.2 on the CPU in float32.
"""

import json
import os
import pathlib
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # before the imports that read it

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file

LIMIT = 1e-4


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    model_dir, adapter_dir, rows, logits_file = sys.argv[1:]
    transformers.logging.disable_progress_bar()
    texts = [json.loads(line)["text"] for line in pathlib.Path(rows).read_text().splitlines()]
    ours = load_file(logits_file)["logits"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        model_dir, dtype=torch.float32, num_labels=ours.shape[1], ignore_mismatched_sizes=True
    )
    with torch.no_grad():
        for name, p in base.named_parameters():
            if name.startswith(("classifier.", "pre_classifier.", "score.")):
                p.normal_()
        logits = lambda model: torch.cat([model(**tokenizer(t, return_tensors="pt")).logits for t in texts])
        scrambled = logits(base.eval())
        theirs = logits(PeftModel.from_pretrained(base, adapter_dir).eval())
    if theirs.shape != ours.shape:
        sys.exit(f"our logits are {tuple(ours.shape)}, PEFT's are {tuple(theirs.shape)}")
    difference, effect = (theirs - ours).abs().max().item(), (theirs - scrambled).abs().max().item()
    print(f"{len(texts)} texts, max abs difference {difference:.2e} (limit {LIMIT:.0e}); the adapter moves logits by {effect:.2e}")
    sys.exit(0 if difference <= LIMIT else 1)


if __name__ == "__main__":
    main()
