#!/usr/bin/env python3
"""Loads our adapter with PEFT and compares its logits with ours; exits 1 when they differ by more than 1e-4.

  scripts/ref_peft_load.py MODEL_DIR ADAPTER_DIR TEXT|IDS LOGITS_FILE

IDS are token numbers, `12,7,9` or `12 7 9`; anything else is TEXT, tokenized with the model's tokenizer
without adding special tokens. LOGITS_FILE holds what our trainer computed for that input, as safetensors
with `logits` (T, V) and optionally `input_ids` (T), or as JSON `{"logits": [[...]], "input_ids": [...]}`.
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


def read_logits(path):
    if path.suffix == ".json":
        raw = json.loads(path.read_text())
        return {k: torch.tensor(v) for k, v in raw.items() if k in ("logits", "input_ids")}
    return load_file(path)


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    model_dir, adapter_dir, text, logits_file = sys.argv[1:]
    transformers.logging.disable_progress_bar()
    parts = text.replace(",", " ").split()
    if parts and all(p.isdigit() for p in parts):
        ids = [int(p) for p in parts]
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ours = read_logits(pathlib.Path(logits_file))
    if "input_ids" in ours and ours["input_ids"].tolist() != ids:
        sys.exit(f"the logits are for tokens {ours['input_ids'].tolist()}, not {ids}")

    base = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    row = torch.tensor([ids])
    with torch.no_grad():
        plain = base.eval()(row).logits[0]
        model = PeftModel.from_pretrained(base, adapter_dir).eval()
        theirs = model(row).logits[0]
    untouched = [n for n, p in model.named_parameters() if "lora_B" in n and not p.any()]
    if untouched:
        sys.exit(f"{len(untouched)} adapter tensors are zero after loading, {untouched[0]} first: a name is wrong")
    if theirs.shape != ours["logits"].shape:
        sys.exit(f"our logits are {tuple(ours['logits'].shape)}, PEFT's are {tuple(theirs.shape)}")
    difference = (theirs - ours["logits"]).abs().max().item()
    effect = (theirs - plain).abs().max().item()
    print(f"{len(ids)} tokens, max abs difference {difference:.2e} (limit {LIMIT:.0e}); the adapter moves logits by {effect:.2e}")
    sys.exit(0 if difference <= LIMIT else 1)


if __name__ == "__main__":
    main()
