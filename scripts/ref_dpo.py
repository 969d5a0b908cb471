#!/usr/bin/env python3
"""Makes the reference run of DPO that our recipe must reproduce, with TRL on a tiny random Llama.

  python3 -m venv venv && venv/bin/pip install torch==2.15.* transformers==5.23.* peft==0.21.* trl==1.16.*
  venv/bin/python scripts/ref_dpo.py [OUT_DIR]      default: crates/trainer/tests/fixtures/ref_dpo

Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2 and trl 1.16.0 on the CPU in float32, one thread. The
model and tokenizer are those of scripts/ref_lora.py (run that first); nothing is downloaded.

Written:
  adapter-initial/  LoRA on every linear projection, random A and random non-zero B, PEFT layout
  train.jsonl       the pairs trained on: chats, some with a system message or several turns
  rows.json         [{"chosen", "rejected", "prompt"}]: tokens as TRL makes them, and how many are the prompt's
  {sigmoid,ipo,hinge,robust}.json  per step: loss, rewards, log-probabilities, learning rate, gradient norm

TRL's trainer itself runs, with shuffling off. Its loss is a mean over the pairs of a micro-batch, and gradient
accumulation a mean over micro-batches. The reference is the model with its adapter switched off.
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
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import DPOConfig, DPOTrainer

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "crates/trainer/tests/fixtures"
OUT = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else FIXTURES / "ref_dpo"
MODEL = FIXTURES / "ref_lora/model"

PAIRS, STEPS, BATCH, ACCUMULATION = 40, 20, 2, 2
LORA = {"r": 8, "lora_alpha": 24, "lora_dropout": 0.0}
COMMON = {
    "per_device_train_batch_size": BATCH,
    "gradient_accumulation_steps": ACCUMULATION,
    "max_steps": STEPS,
    "weight_decay": 0.01,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "lr_scheduler_type": "cosine",
    "learning_rate": 2e-3,
    "max_grad_norm": 1.0,
}
WARMUP = 3  # ceil(20 * 0.12)
RUNS = {
    "sigmoid": {"beta": 0.1, "loss_type": "sigmoid", "label_smoothing": 0.0},
    "robust": {"beta": 0.1, "loss_type": "robust", "label_smoothing": 0.1},
    "ipo": {"beta": 0.3, "loss_type": "ipo", "label_smoothing": 0.0},
    "hinge": {"beta": 0.2, "loss_type": "hinge", "label_smoothing": 0.0},
}
KEYS = ["loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"]
KEYS += ["learning_rate", "grad_norm"]


def make_pairs():
    """Right sums are preferred to wrong ones."""
    rng = random.Random(4)
    names = "zero one two three four five six seven eight nine".split()
    pairs = []
    for i in range(PAIRS):
        a, b = rng.randrange(10), rng.randrange(10)
        good, bad = f"{a + b}", f"It is {a + b + rng.randrange(1, 4)}, I think."
        if i % 3 == 1:
            good, bad = f"It is {a + b}.", f"{a * b + 1}"
        prompt = [{"role": "user", "content": f"{names[a]} and {names[b]}?"}]
        if i % 5 == 0:
            prompt.insert(0, {"role": "system", "content": "Add."})
        if i % 7 == 3:
            prompt += [{"role": "assistant", "content": "Sure?"}, {"role": "user", "content": "Yes – 100 %."}]
        said = lambda text: [{"role": "assistant", "content": text}]
        pairs.append({"prompt": prompt, "chosen": said(good), "rejected": said(bad)})
    return pairs


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def base():
    return transformers.LlamaForCausalLM.from_pretrained(MODEL)


def adapter_config():
    return LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", bias="none", **LORA)


def fill(model):
    """Random A and B: with TRL's zero B the first rewards and half of the first gradients would be zero."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0.0, 0.03)
            elif "lora_A" in name:
                p.normal_(0.0, 0.12)
    return model


def save_adapter(model, to):
    with tempfile.TemporaryDirectory() as tmp:
        model.save_pretrained(tmp)
        to.mkdir(parents=True)
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(pathlib.Path(tmp) / name, to / name)
    config = json.loads((to / "adapter_config.json").read_text())
    config["target_modules"].sort()  # a set in PEFT, in random order
    write_json(to / "adapter_config.json", config)
    (to / "adapter_model.safetensors").chmod(0o644)


class InOrder(DPOTrainer):
    """Rows in file order."""

    def _get_train_sampler(self, dataset=None):
        return torch.utils.data.SequentialSampler(dataset if dataset is not None else self.train_dataset)


def main():
    transformers.logging.disable_progress_bar()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    pairs = make_pairs()
    (OUT / "train.jsonl").write_text("".join(json.dumps(p, ensure_ascii=False) + "\n" for p in pairs))
    model = get_peft_model(base(), adapter_config())
    model.peft_config["default"].base_model_name_or_path = "ref-tiny-llama"
    save_adapter(fill(model), OUT / "adapter-initial")
    for name, dpo in RUNS.items():
        tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
        with tempfile.TemporaryDirectory() as tmp:
            args = DPOConfig(
                output_dir=tmp, report_to=[], logging_steps=1, save_strategy="no", use_cpu=True, bf16=False, disable_tqdm=True,
                gradient_checkpointing=False, max_length=128, warmup_steps=WARMUP, seed=1, loss_type=[dpo["loss_type"]], beta=dpo["beta"],
                label_smoothing=dpo["label_smoothing"], **COMMON,
            )
            # TRL makes the adapter itself: one it is given would become the reference.
            data = Dataset.from_list(pairs)
            trainer = InOrder(model=base(), args=args, train_dataset=data, processing_class=tokenizer, peft_config=adapter_config())
            fill(trainer.model)
            rows = [{"chosen": r["prompt_ids"] + r["chosen_ids"], "rejected": r["prompt_ids"] + r["rejected_ids"], "prompt": len(r["prompt_ids"])} for r in trainer.train_dataset]
            trainer.train()
        logs = [log for log in trainer.state.log_history if "loss" in log]
        assert len(logs) == STEPS
        steps = [{key: log[key] for key in KEYS} for log in logs]
        write_json(OUT / f"{name}.json", {"lora": LORA, "dpo": dpo, "settings": COMMON | {"warmup_ratio": 0.12}, "steps": steps})
        print(name, f"loss {steps[0]['loss']:.4f} -> {steps[-1]['loss']:.4f}, margins {steps[-1]['rewards/margins']:.4f}")
    (OUT / "rows.json").write_text("[\n" + ",\n".join(json.dumps(r) for r in rows) + "\n]\n")
    size = sum(f.stat().st_size for f in OUT.rglob("*") if f.is_file())
    print(f"{OUT}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
