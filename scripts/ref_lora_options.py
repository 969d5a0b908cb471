#!/usr/bin/env python3
"""Makes the reference runs of LoRA's options: rank and alpha patterns, rsLoRA, DoRA.

  python3 -m venv venv && venv/bin/pip install torch==2.15.* transformers==5.23.* peft==0.21.*
  venv/bin/python scripts/ref_lora_options.py [OUT_DIR]   default: crates/trainer/tests/fixtures/ref_lora_options

Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2 on the CPU in float32. Model, rows and recipe are those of
ref_lora.py, whose fixtures must exist. Written for every option, in a folder of its own:

  adapter_config.json, adapter_model.safetensors   the starting adapter as PEFT saves it, B and magnitudes not initial
  run.json                per step: loss, learning rate, gradient norm before clipping; the settings
  tensors.safetensors     `grad.NAME` of the first step under the adapter file's names; `input_ids` (T) of one row with
                          logits (T, V) of the starting adapter, `logits`, of the trained one, `trained`, and of the
                          base with the starting adapter merged into it by PEFT, `merged`
"""

import json
import pathlib
import shutil
import sys

import ref_lora as ref
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

OUT = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ref.ROOT / "crates/trainer/tests/fixtures/ref_lora_options"
MODEL = ref.ROOT / "crates/trainer/tests/fixtures/ref_lora/model"

OPTIONS = {
    "patterns": {
        "r": 6,
        "lora_alpha": 12,
        "rank_pattern": {"q_proj": 3, r"layers\.1\.mlp\.down_proj": 2},
        "alpha_pattern": {"v_proj": 24, ".*layers.0.*gate_proj": 5},
    },
    "rslora": {"r": 6, "lora_alpha": 10, "use_rslora": True, "rank_pattern": {"up_proj": 2}},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True, "alpha_pattern": {"o_proj": 16}},
}


def first_gradients(model, rows, pad):
    chosen = rows[: ref.BATCH * ref.ACCUMULATION]
    micro = [ref.collate(chosen[i : i + ref.BATCH], pad) for i in range(0, len(chosen), ref.BATCH)]
    targets = sum(int((m["labels"][:, 1:] != -100).sum()) for m in micro)
    for batch in micro:
        model(**batch, num_items_in_batch=targets).loss.backward()
    # The adapter file's names, by letting PEFT save the gradients.
    kept = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for n, p in model.named_parameters():
            if n in kept:
                p.copy_(p.grad)
        named = {f"grad.{n}": p.clone() for n, p in get_peft_model_state_dict(model).items()}
        for n, p in model.named_parameters():
            if n in kept:
                p.copy_(kept[n])
    model.zero_grad()
    return named


def base():
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def main():
    transformers.logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    rows = [ref.encode(tokenizer, c) for c in ref.make_chats()]
    row = torch.tensor([rows[4]["input_ids"]])
    for name, options in OPTIONS.items():
        config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", bias="none", **options)
        model = get_peft_model(base(), config)
        model.peft_config["default"].base_model_name_or_path = "ref-tiny-llama"
        torch.manual_seed(4)
        with torch.no_grad():
            for n, p in model.named_parameters():
                if "lora_B" in n:
                    p.normal_(0.0, 0.05)
                elif "lora_A" in n:
                    p.normal_(0.0, 0.12)
                elif "lora_magnitude_vector" in n:
                    p.mul_(torch.empty_like(p).uniform_(0.9, 1.1))
        to = OUT / name
        ref.save_adapter(model, to)
        model.eval()
        with torch.no_grad():
            tensors = {"input_ids": row[0], "logits": model(row).logits[0]}
            merged = PeftModel.from_pretrained(base(), to).merge_and_unload().eval()
            tensors["merged"] = merged(row).logits[0]
        tensors |= first_gradients(model, rows, tokenizer.pad_token_id)
        result = ref.train(model, rows, ref.LORA_RUN, tokenizer.pad_token_id)
        del result["first_gradient_norms"]
        with torch.no_grad():
            tensors["trained"] = model.eval()(row).logits[0]
        save_file({n: t.contiguous() for n, t in tensors.items()}, to / "tensors.safetensors")
        ref.write_json(to / "run.json", result)
    for f in OUT.rglob("*.safetensors"):
        f.chmod(0o644)
    size = sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file())
    print(f"{OUT}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
