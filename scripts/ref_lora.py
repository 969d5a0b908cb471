#!/usr/bin/env python3
"""Makes the reference run that our recipe must reproduce: LoRA and full fine-tuning of a tiny Llama.

  python3 -m venv venv && venv/bin/pip install torch==2.15.* transformers==5.23.* peft==0.21.*
  venv/bin/python scripts/ref_lora.py [OUT_DIR]      default: crates/trainer/tests/fixtures/ref_lora

Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2 on the CPU in float32. Nothing is downloaded and
all randomness is seeded, so a second run writes the same files up to the last bits of sums.

Written:
  model/              random Llama (grouped heads, tied embeddings) in the Hugging Face layout, with a
                      byte-level tokenizer (256 bytes + 4 control tokens) and a ChatML template
  adapter-initial/    LoRA on every linear projection, random A and random non-zero B, PEFT layout
  adapter-final/      the same after the run
  train.jsonl         the chats trained on
  rows.json           [{"input_ids", "labels"}]: the chats as Transformers tokenizes them; -100 = no loss
  lora.json           per step: loss, learning rate, gradient norm before clipping; gradient norms per
                      tensor of the first step; the settings
  full.json           the same for training all weights
  logits.safetensors  logits of one row: `input_ids` (T), `base` and `adapter` (T, V), initial adapter

The recipe (what transformers.Trainer does): rows in file order, `batch` rows per micro-batch padded on the
right, `accumulation` micro-batches per step; loss summed over target tokens and divided by their number in
the whole step; gradient norm clipped; AdamW with decay on matrices only; cosine schedule with warm-up.
"""

import json
import math
import os
import pathlib
import random
import shutil
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # before the imports that read it

import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "crates/trainer/tests/fixtures/ref_lora"

ROWS, BATCH, ACCUMULATION, STEPS = 40, 2, 2, 20
LORA = {"r": 8, "lora_alpha": 24, "lora_dropout": 0.0}
COMMON = {
    "per_device_train_batch_size": BATCH,
    "gradient_accumulation_steps": ACCUMULATION,
    "max_steps": STEPS,
    "warmup_ratio": 0.12,  # ceil(20 * 0.12) = 3 steps
    "weight_decay": 0.01,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "lr_scheduler_type": "cosine",
}
# Clipping bites in some steps and not in others.
LORA_RUN = COMMON | {"learning_rate": 5e-3, "max_grad_norm": 3.0}
FULL_RUN = COMMON | {"learning_rate": 2e-3, "max_grad_norm": 4.0}

TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' }}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{ message['content'] + '<|im_end|>' }}{%- endgeneration -%}
{%- else -%}
{{ message['content'] + '<|im_end|>' }}
{%- endif -%}
{{ '\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
"""


def make_tokenizer():
    """Byte-level, no merges: every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )
    fast.chat_template = TEMPLATE
    return fast


def make_model(tokenizer):
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        initializer_range=0.08,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():  # norm weights of 1 would hide a norm that ignores them
        for name, p in model.named_parameters():
            if "norm" in name:
                p.uniform_(0.7, 1.3)
    return model.eval()


def make_chats():
    """Sums in words: short, ragged, and learnable."""
    rng = random.Random(2)
    names = "zero one two three four five six seven eight nine".split()
    chats = []
    for i in range(ROWS):
        a, b = rng.randrange(10), rng.randrange(10)
        messages = [
            {"role": "user", "content": f"{names[a]} and {names[b]}?"},
            {"role": "assistant", "content": f"{a + b}" if i % 3 else f"It is {a + b}."},
        ]
        if i % 4 == 0:
            messages.insert(0, {"role": "system", "content": "Add."})
        if i % 7 == 3:
            messages += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes – 100 %."}]
        chats.append({"messages": messages})
    return chats


def encode(tokenizer, chat):
    out = tokenizer.apply_chat_template(
        chat["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    labels = [t if m else -100 for t, m in zip(out["input_ids"], out["assistant_masks"])]
    return {"input_ids": out["input_ids"], "labels": labels}


def collate(rows, pad):
    length = max(len(r["input_ids"]) for r in rows)
    fill = lambda key, value: torch.tensor([r[key] + [value] * (length - len(r[key])) for r in rows])
    mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (length - len(r["input_ids"])) for r in rows])
    return {"input_ids": fill("input_ids", pad), "labels": fill("labels", -100), "attention_mask": mask}


def train(model, rows, run, pad):
    model.train()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    decayed = set(transformers.Trainer.get_decay_parameter_names(None, model))
    groups = [
        {"params": [p for n, p in trained.items() if n in decayed], "weight_decay": run["weight_decay"]},
        {"params": [p for n, p in trained.items() if n not in decayed], "weight_decay": 0.0},
    ]
    betas = (run["adam_beta1"], run["adam_beta2"])
    optimizer = torch.optim.AdamW(groups, lr=run["learning_rate"], betas=betas, eps=run["adam_epsilon"])
    warmup = math.ceil(run["max_steps"] * run["warmup_ratio"])
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, warmup, run["max_steps"])
    steps, first = [], {}
    per_step = BATCH * ACCUMULATION
    for step in range(run["max_steps"]):
        start = step * per_step % len(rows)
        chosen = rows[start : start + per_step]
        micro = [collate(chosen[i : i + BATCH], pad) for i in range(0, per_step, BATCH)]
        targets = sum(int((m["labels"][:, 1:] != -100).sum()) for m in micro)
        total = 0.0
        for batch in micro:
            loss = model(**batch, num_items_in_batch=targets).loss
            loss.backward()
            total += loss.item()
        if not first:
            first = {n: p.grad.norm().item() for n, p in trained.items()}
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), run["max_grad_norm"]).item()
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        steps.append({"loss": total, "learning_rate": rate, "grad_norm": norm, "targets": targets})
    clipped = sum(s["grad_norm"] > run["max_grad_norm"] for s in steps)
    print(f"loss {steps[0]['loss']:.4f} -> {steps[-1]['loss']:.4f}, {clipped} of {len(steps)} steps clipped")
    return {"settings": run, "steps": steps, "first_gradient_norms": first}


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def save_adapter(model, to):
    with tempfile.TemporaryDirectory() as tmp:
        model.save_pretrained(tmp)
        to.mkdir(parents=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(pathlib.Path(tmp) / name, to / name)
    config = json.loads((to / "adapter_config.json").read_text())
    config["target_modules"].sort()  # a set in PEFT, in random order
    write_json(to / "adapter_config.json", config)


def main():
    transformers.logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    tokenizer = make_tokenizer()
    base = make_model(tokenizer)
    base.generation_config = transformers.GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    base.save_pretrained(OUT / "model")
    tokenizer.save_pretrained(OUT / "model")
    chats = make_chats()
    (OUT / "train.jsonl").write_text("".join(json.dumps(c, ensure_ascii=False) + "\n" for c in chats))
    rows = [encode(tokenizer, c) for c in chats]
    assert all(r["labels"][0] == -100 for r in rows)
    (OUT / "rows.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
    lengths = [len(r["input_ids"]) for r in rows]
    print(f"{len(rows)} rows of {min(lengths)} to {max(lengths)} tokens")

    row = torch.tensor([rows[4]["input_ids"]])
    with torch.no_grad():
        base_logits = base(row).logits[0]

    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", bias="none", **LORA)
    model = get_peft_model(base, config)
    model.peft_config["default"].base_model_name_or_path = "ref-tiny-llama"
    torch.manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0.0, 0.05)
            elif "lora_A" in name:
                p.normal_(0.0, 0.12)
    save_adapter(model, OUT / "adapter-initial")
    with torch.no_grad():
        adapter_logits = model.eval()(row).logits[0]
    tensors = {"input_ids": row[0], "base": base_logits.contiguous(), "adapter": adapter_logits.contiguous()}
    save_file(tensors, OUT / "logits.safetensors")
    result = train(model, rows, LORA_RUN, tokenizer.pad_token_id)
    write_json(OUT / "lora.json", {"lora": LORA} | result)
    save_adapter(model, OUT / "adapter-final")

    full = transformers.LlamaForCausalLM.from_pretrained(OUT / "model")
    write_json(OUT / "full.json", train(full, rows, FULL_RUN, tokenizer.pad_token_id))
    for f in OUT.rglob("*.safetensors"):
        f.chmod(0o644)
    size = sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file())
    print(f"{OUT}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
