#!/usr/bin/env python3
"""Makes the reference runs of sequence classification: tiny random encoders with LoRA, and with all weights trained.

  python3 -m venv venv && venv/bin/pip install torch==2.15.* transformers==5.23.* peft==0.21.*
  venv/bin/python scripts/ref_encoders.py [OUT_DIR]      default: crates/trainer/tests/fixtures/ref_encoders

Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2 on the CPU in float32, one thread. Nothing is downloaded.

Written: train.jsonl, the texts and labels trained on, and for bert, distilbert, roberta and xlm-roberta:
  model/            random model with three classes and a word-level tokenizer that puts [CLS] and [SEP], or <s> and
                    </s>, around a text; all dropout is off
  adapter-initial/  LoRA on every linear projection of the base (random A, random non-zero B) and the head, PEFT layout
  adapter-final/    the same after the run
  lora.json         per step: loss, learning rate, gradient norm before clipping; the settings
  full.json         the same for training all weights
  logits.safetensors  logits of all texts: `base`, `adapter` (initial) and `final`, (rows, classes)

The recipe is transformers.Trainer's: rows in file order, padded on the right, loss the mean over the rows of a step,
AdamW with decay on matrices only, gradient norm clipped, cosine schedule with warm-up.
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
from tokenizers import Tokenizer, models, pre_tokenizers, processors

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "crates/trainer/tests/fixtures/ref_encoders"

ROWS, BATCH, ACCUMULATION, STEPS = 40, 2, 2, 20
LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0}
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
    "max_grad_norm": 3.0,
}
LORA_RUN = COMMON | {"learning_rate": 5e-3}
FULL_RUN = COMMON | {"learning_rate": 1e-3}
LABELS = ["bad", "good", "so-so"]
WORDS = {"bad": ["awful", "dull", "poor"], "good": ["great", "fine", "lovely"], "so-so": ["average", "plain", "usual"]}
OTHER = ["the", "a", "film", "book", "was", "is", "really", "not", "very", "and"]


SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
ROBERTA_TOKENS = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>"}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
ENCODERS = {
    "bert": (transformers.BertConfig, transformers.BertForSequenceClassification, BERT_TOKENS, SIZES | NO_DROPOUT),
    "distilbert": (
        transformers.DistilBertConfig,
        transformers.DistilBertForSequenceClassification,
        BERT_TOKENS,
        {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}
        | {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0},
    ),
    "roberta": (
        transformers.RobertaConfig,
        transformers.RobertaForSequenceClassification,
        ROBERTA_TOKENS,
        SIZES | NO_DROPOUT | {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
    "xlm-roberta": (
        transformers.XLMRobertaConfig,
        transformers.XLMRobertaForSequenceClassification,
        ROBERTA_TOKENS,
        SIZES | NO_DROPOUT | {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
    ),
}


def make_tokenizer(special):
    words = [*special.values(), *OTHER, *(w for label in LABELS for w in WORDS[label])]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=special["unk"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    cls, sep = special["cls"], special["sep"]
    around = [(token, words.index(token)) for token in (cls, sep)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{cls} $A {sep}", special_tokens=around)
    named = {f"{kind}_token": token for kind, token in special.items()}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def make_model(tokenizer, configuration, architecture, settings):
    torch.manual_seed(11)
    config = configuration(
        vocab_size=len(tokenizer),
        max_position_embeddings=32,
        initializer_range=0.2,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
        **settings,
    )
    model = architecture(config)
    with torch.no_grad():  # weights of 1 and biases of 0 would hide what ignores them
        for name, p in model.named_parameters():
            if "LayerNorm.weight" in name or "layer_norm.weight" in name:
                p.uniform_(0.7, 1.3)
            elif "bias" in name:
                p.uniform_(-0.2, 0.2)
    return model.eval()


def make_rows():
    rng = random.Random(12)
    rows = []
    for _ in range(ROWS):
        label = rng.choice(LABELS)
        text = [rng.choice(OTHER) for _ in range(rng.randrange(1, 12))]
        text.insert(rng.randrange(len(text) + 1), rng.choice(WORDS[label]))
        rows.append({"text": " ".join(text), "label": label})
    return rows


def train(model, tokenizer, rows, run):
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
    steps, per_step = [], BATCH * ACCUMULATION
    for step in range(run["max_steps"]):
        start = step * per_step % len(rows)
        total = 0.0
        for at in range(start, start + per_step, BATCH):
            chosen = rows[at : at + BATCH]
            batch = tokenizer([r["text"] for r in chosen], padding=True, return_tensors="pt", return_token_type_ids=False)
            loss = model(**batch, labels=torch.tensor([LABELS.index(r["label"]) for r in chosen])).loss / ACCUMULATION
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(trained.values(), run["max_grad_norm"]).item()
        rate = schedule.get_last_lr()[0]
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        steps.append({"loss": total, "learning_rate": rate, "grad_norm": norm})
    clipped = sum(s["grad_norm"] > run["max_grad_norm"] for s in steps)
    print(f"loss {steps[0]['loss']:.4f} -> {steps[-1]['loss']:.4f}, {clipped} of {len(steps)} steps clipped")
    return {"settings": run, "steps": steps}


def logits(model, tokenizer, rows):
    model.eval()
    with torch.no_grad():
        batch = tokenizer([r["text"] for r in rows], padding=True, return_tensors="pt", return_token_type_ids=False)
        return model(**batch).logits.contiguous()


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


def reference(out, base, tokenizer, rows):
    base.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    tensors = {"base": logits(base, tokenizer, rows)}

    # Head layers that PEFT does not know as such would stay random in a fresh head, and the adapter be useless.
    whole = [name for name, _ in base.named_children() if name == "pre_classifier"]
    lora = LoraConfig(
        task_type="SEQ_CLS", target_modules="all-linear", exclude_modules=r"(pre_)?classifier.*", bias="none",
        modules_to_save=whole or None, **LORA,
    )  # fmt: skip
    model = get_peft_model(base, lora)
    model.peft_config["default"].base_model_name_or_path = f"ref-tiny-{out.name}"
    torch.manual_seed(13)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0.0, 0.05)
            elif "lora_A" in name:
                p.normal_(0.0, 0.12)
    save_adapter(model, out / "adapter-initial")
    tensors["adapter"] = logits(model, tokenizer, rows)
    write_json(out / "lora.json", {"lora": LORA} | train(model, tokenizer, rows, LORA_RUN))
    save_adapter(model, out / "adapter-final")
    tensors["final"] = logits(model, tokenizer, rows)
    save_file(tensors, out / "logits.safetensors")

    full = type(base).from_pretrained(out / "model")
    write_json(out / "full.json", train(full, tokenizer, rows, FULL_RUN))


def main():
    transformers.logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    rows = make_rows()
    (OUT / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name, (configuration, architecture, special, settings) in ENCODERS.items():
        print(name)
        tokenizer = make_tokenizer(special)
        reference(OUT / name, make_model(tokenizer, configuration, architecture, settings), tokenizer, rows)
    for f in OUT.rglob("*.safetensors"):
        f.chmod(0o644)
    size = sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file())
    print(f"{OUT}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
