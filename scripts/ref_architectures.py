#!/usr/bin/env python3
"""Makes the reference numbers of every architecture: one tiny random model each, and LoRA on it.

  python3 -m venv venv && venv/bin/pip install torch==2.15.* transformers==5.23.* peft==0.21.*
  venv/bin/python scripts/ref_architectures.py [OUT_DIR]   default: crates/trainer/tests/fixtures/ref_architectures

Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2 on the CPU, float32, eager attention. Nothing is downloaded
and all randomness is seeded, so a second run writes the same files up to the last bits of sums.

Rows are random tokens, longer than the windows. Written for every model, in a folder of its own:

  config.json, *.safetensors   the model in the Hugging Face layout, stored in float16, some in shards
  adapter/                     LoRA on every linear projection as PEFT saves it, A and B random
  rows.json                    [{"input_ids", "labels"}]; -100 = no loss
  run.json                     losses of 20 LoRA steps from that adapter (two rows each, in turn; AdamW, constant rate);
                               gradient norms of every weight of the base when all are trained, first two rows
  tensors.safetensors          `input_ids` (T) with logits (T, V) `base` and `adapter`; `grad.NAME` of the adapter, first
                               two rows; `final.NAME`, the adapter after the run
"""

import json
import os
import pathlib
import random
import shutil
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # before the imports that read it

import torch
import transformers
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "crates/trainer/tests/fixtures/ref_architectures"

VOCAB, STEPS, WINDOW = 96, 20, 8
# The first two rows fit into LongRoPE's original context, the others do not.
LENGTHS = [12, 14, 24, 9, 28, 17]
LORA = {"r": 4, "lora_alpha": 12, "lora_dropout": 0.0}
SETTINGS = {"learning_rate": 5e-3, "weight_decay": 0.01, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}

COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
    "dtype": "float32",
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.5, 2.5, 4.0],
    "partial_rotary_factor": 0.75,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 50.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 2.0,
    "beta_slow": 0.5,
}
GEMMA = {"head_dim": 12, "query_pre_attn_scalar": 20, "sliding_window": WINDOW, "tie_word_embeddings": True}
LOCAL_AND_GLOBAL = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
}

# Name: (class prefix, settings, shard size)
MODELS = {
    "llama2": ("Llama", {"num_key_value_heads": 4, "rope_parameters": ROPE, "tie_word_embeddings": False}, "1GB"),
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}, "1GB"),
    "llama-biased": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, "1GB"),
    "mistral": ("Mistral", {"sliding_window": WINDOW, "head_dim": 12}, "20KB"),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}, "1GB"),
    "qwen3": (
        "Qwen3",
        {"head_dim": 12, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        "1GB",
    ),
    "gemma2": ("Gemma2", GEMMA | {"attn_logit_softcapping": 4.0, "final_logit_softcapping": 5.0}, "20KB"),
    "gemma3": (
        "Gemma3",
        GEMMA | {"layer_types": ["sliding_attention", "full_attention"], "rope_parameters": LOCAL_AND_GLOBAL},
        "1GB",
    ),
    "phi3": ("Phi3", {"sliding_window": WINDOW, "tie_word_embeddings": False, "rope_parameters": ROPE}, "1GB"),
    "phi3-longrope": (
        "Phi3",
        {"tie_word_embeddings": True, "rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
        "1GB",
    ),
    "qwen2-yarn": ("Qwen2", {"tie_word_embeddings": True, "head_dim": 16, "rope_parameters": YARN}, "1GB"),
}


def make_model(prefix, settings, seed):
    torch.manual_seed(seed)
    config_class = {"Gemma3": "Gemma3TextConfig"}.get(prefix, f"{prefix}Config")
    config = getattr(transformers, config_class)(**(COMMON | settings))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{prefix}ForCausalLM")(config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:  # weights that do nothing would hide a norm that ignores them
                p.uniform_(-0.3, 0.3) if prefix.startswith("Gemma") else p.uniform_(0.7, 1.3)
            elif name.endswith("bias"):
                p.normal_(0.0, 0.3)
            p.copy_(p.half())
    scaled = config.rope_parameters.get("original_max_position_embeddings")
    assert scaled is None or scaled < max(LENGTHS), f"{scaled}: rows do not reach the scaled positions"
    return model.eval()


def make_rows():
    rng = random.Random(2)
    rows = []
    for length in LENGTHS:
        tokens = [rng.randrange(2, VOCAB) for _ in range(length)]
        rows.append({"input_ids": tokens, "labels": [t if i % 4 else -100 for i, t in enumerate(tokens)]})
    return rows


def collate(rows):
    length = max(len(r["input_ids"]) for r in rows)
    fill = lambda key, value: torch.tensor([r[key] + [value] * (length - len(r[key])) for r in rows])
    mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (length - len(r["input_ids"])) for r in rows])
    return {"input_ids": fill("input_ids", 0), "labels": fill("labels", -100), "attention_mask": mask}


def batches(rows):
    pairs = [rows[i : i + 2] for i in range(0, len(rows), 2)]
    return [collate(pairs[step % len(pairs)]) for step in range(STEPS)]


def named(model, values):
    """`values` under the adapter file's names, by letting PEFT save them."""
    kept = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for n, p in model.named_parameters():
            if n in kept:
                p.copy_(values(p))
        state = {n: p.clone().contiguous() for n, p in get_peft_model_state_dict(model).items()}
        for n, p in model.named_parameters():
            if n in kept:
                p.copy_(kept[n])
    return state


def train(model, rows):
    trained = [p for p in model.parameters() if p.requires_grad]
    betas = (SETTINGS["adam_beta1"], SETTINGS["adam_beta2"])
    optimizer = torch.optim.AdamW(
        trained,
        lr=SETTINGS["learning_rate"],
        betas=betas,
        eps=SETTINGS["adam_epsilon"],
        weight_decay=SETTINGS["weight_decay"],
    )
    losses, gradients = [], {}
    for batch in batches(rows):
        loss = model(**batch).loss
        loss.backward()
        gradients = gradients or named(model, lambda p: p.grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, gradients


def full_gradient_norms(model, rows):
    model.requires_grad_(True)
    model(**batches(rows)[0]).loss.backward()
    norms = {n: p.grad.norm().item() for n, p in model.named_parameters()}
    model.zero_grad()
    return norms


def write_json(path, value, **style):
    path.write_text(json.dumps(value, **style) + "\n")


def save_adapter(model, to):
    with tempfile.TemporaryDirectory() as tmp:
        model.save_pretrained(tmp)
        to.mkdir()
        shutil.copyfile(pathlib.Path(tmp) / "adapter_model.safetensors", to / "adapter_model.safetensors")
        config = json.loads((pathlib.Path(tmp) / "adapter_config.json").read_text())
    config["target_modules"].sort()  # a set in PEFT, in random order
    write_json(to / "adapter_config.json", config, indent=1)


def reference(name, prefix, settings, shard_size, rows, seed):
    to = OUT / name
    base = make_model(prefix, settings, seed)
    stored = make_model(prefix, settings, seed).half()
    stored.config.dtype = "float16"
    stored.save_pretrained(to, max_shard_size=shard_size)
    (to / "generation_config.json").unlink(missing_ok=True)
    row = torch.tensor([rows[4]["input_ids"]])
    with torch.no_grad():
        base_logits = base(row).logits[0]
    norms = full_gradient_norms(base, rows)

    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", bias="none", **LORA))
    model.peft_config["default"].base_model_name_or_path = f"ref-{name}"
    torch.manual_seed(seed + 100)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_" in n:
                p.normal_(0.0, 0.12)
    save_adapter(model, to / "adapter")
    with torch.no_grad():
        adapter_logits = model(row).logits[0]
    losses, gradients = train(model, rows)
    final = named(model, lambda p: p)
    tensors = {"input_ids": row[0], "base": base_logits.contiguous(), "adapter": adapter_logits.contiguous()}
    tensors |= {f"grad.{n}": p for n, p in gradients.items()} | {f"final.{n}": p for n, p in final.items()}
    save_file(tensors, to / "tensors.safetensors")
    run = {"settings": SETTINGS, "losses": losses, "full_gradient_norms": norms}
    write_json(to / "run.json", run, indent=1)
    for f in to.rglob("*.safetensors"):
        f.chmod(0o644)
    largest = base_logits.abs().max().item()
    effect = (adapter_logits - base_logits).abs().max().item()
    print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}, logits to {largest:.1f}, moved by {effect:.2f}")


def main():
    transformers.logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    rows = make_rows()
    (OUT / "rows.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
    for seed, (name, (prefix, settings, shard_size)) in enumerate(MODELS.items(), start=1):
        reference(name, prefix, settings, shard_size, rows, seed)
    size = sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file())
    print(f"{OUT}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
