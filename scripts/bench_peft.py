#!/usr/bin/env python3
"""The side of torch + transformers + PEFT in `make bench-trainer`: writes the cases, and trains on them.

  bench_peft.py prepare DIR                 writes every case below DIR: weights, adapter, rows
  bench_peft.py run CASE_DIR [--threads 2] [--steps 3] [--peak] [--started UNIX_SECONDS]

Cases: `small` (Llama, hidden 512, 8 layers, 32.8M parameters, 4 x 512 tokens, every token a target), `smollm`
(SmolLM2-135M's configuration, 2 x 1024), `chat` (the small model on 40 conversations of uneven length in batches of 8,
loss on the answers), `tiny` (hone-tiny's configuration, 4 x 128). Weights are random; LoRA r 16 on every projection,
AdamW, clipping at 1, float32, scaled-dot-product attention. Rows are padded to the longest of their batch, as the
collators of transformers do; only real tokens are counted.

Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2.
"""

import argparse
import json
import os
import pathlib
import random
import resource
import time

os.environ["HF_HUB_OFFLINE"] = "1"  # before the imports that read it

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

LEARNING_RATE = 2e-4
PAD = -100

LLAMA = {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "use_cache": False, "initializer_range": 0.02}
SMALL = dict(
    vocab_size=8192, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=4, tie_word_embeddings=False,
)  # fmt: skip
SMOLLM = dict(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, tie_word_embeddings=True, rope_theta=100000.0,
)  # fmt: skip
TINY = dict(
    vocab_size=4096, hidden_size=128, intermediate_size=384, num_hidden_layers=6, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, tie_word_embeddings=True,
)  # fmt: skip


def full(rng, vocab, batch, length):
    """Rows of one length, every token a target."""
    return [{"tokens": [rng.randrange(vocab) for _ in range(length)], "trained": [1] * length} for _ in range(batch)]


def chat(rng, vocab, rows):
    """Conversations: turns of uneven length, loss on every second one. Most are short, few are long."""
    out = []
    for _ in range(rows):
        length = max(24, min(1024, int(rng.lognormvariate(5.0, 0.8))))
        trained = []
        while len(trained) < length:
            trained += [0] * rng.randrange(8, 80) + [1] * rng.randrange(8, 120)
        trained = trained[:length]
        trained[-1] = 1
        out.append({"tokens": [rng.randrange(vocab) for _ in range(length)], "trained": trained})
    return out


def cases(rng):
    talk = chat(rng, SMALL["vocab_size"], 40)
    return {
        "small": (SMALL, [full(rng, SMALL["vocab_size"], 4, 512)]),
        "smollm": (SMOLLM, [full(rng, SMOLLM["vocab_size"], 2, 1024)]),
        "chat": (SMALL, [talk[i : i + 8] for i in range(0, len(talk), 8)]),
        "tiny": (TINY, [full(rng, TINY["vocab_size"], 4, 128)]),
    }


def prepare(root):
    for name, (sizes, batches) in cases(random.Random(1)).items():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, **sizes))
        model.save_pretrained(root / name)
        lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
        get_peft_model(model, lora).save_pretrained(root / name / "adapter")
        case = {"vocab_size": sizes["vocab_size"], "learning_rate": LEARNING_RATE, "batches": batches}
        (root / name / "batches.json").write_text(json.dumps(case))


def collate(rows):
    """Padded on the right to the longest row; the mask is left out when nothing is padded."""
    longest = max(len(row["tokens"]) for row in rows)
    padded = lambda values, fill: torch.tensor([v + [fill] * (longest - len(v)) for v in values])
    tokens = [row["tokens"] for row in rows]
    labels = [[t if on else PAD for t, on in zip(row["tokens"], row["trained"])] for row in rows]
    batch = {"input_ids": padded(tokens, 0), "labels": padded(labels, PAD)}
    if any(len(t) < longest for t in tokens):
        batch["attention_mask"] = padded([[1] * len(t) for t in tokens], 0)
    return batch, sum(map(len, tokens))


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_gflops(edge=2048):
    a, b = torch.randn(edge, edge), torch.randn(edge, edge)
    best = float("inf")
    for _ in range(6):
        start = cpu_seconds()
        a @ b.T
        best = min(best, cpu_seconds() - start)
    return 2 * edge**3 / best / 1e9


def run(args):
    torch.set_num_threads(args.threads)
    case = json.loads((args.dir / "batches.json").read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.dir, dtype=torch.float32, attn_implementation="sdpa", use_cache=False
    )
    model = PeftModel.from_pretrained(model, args.dir / "adapter", is_trainable=True)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=case["learning_rate"], weight_decay=0.0)
    batches = [collate(rows) for rows in case["batches"]]
    losses = []

    def step(batch):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    step(batches[0][0])
    first_step = time.time() - args.started if args.started else None
    start, used, tokens = time.perf_counter(), cpu_seconds(), 0
    for i in range(args.steps):
        batch, count = batches[(i + 1) % len(batches)]
        step(batch)
        tokens += count
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - used
    report = {
        "threads": args.threads,
        "tokens_per_second": tokens / seconds,
        "tokens_per_cpu_second": tokens / cpu,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "losses": losses,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "first_step_seconds": first_step,
        "peak_gflops": {"torch": peak_gflops()} if args.peak else None,
    }
    print(json.dumps(report))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "run"])
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--peak", action="store_true")
    parser.add_argument("--started", type=float)
    args = parser.parse_args()
    prepare(args.dir) if args.what == "prepare" else run(args)


if __name__ == "__main__":
    main()
