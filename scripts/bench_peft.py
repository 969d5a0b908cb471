#!/usr/bin/env python3
"""LoRA training speed of torch + PEFT on the CPU, for comparison with ours (`make bench`).

  scripts/bench_peft.py [--threads 2] [--steps 8]

The shape of crates/kernels/benches: Llama with hidden size 512, 8 layers, 8 heads sharing 4 key/value
heads, 32.8 million parameters; LoRA r 16 on all 7 projections; 4 sequences of 512 tokens, every token a
target; AdamW. Prints the median step after one warm-up step, and peak memory of the whole process.
Measured with torch 2.15.0, transformers 5.23.0, peft 0.21.2, float32, scaled-dot-product attention.
"""

import argparse
import json
import os
import resource
import statistics
import time

os.environ["HF_HUB_OFFLINE"] = "1"  # before the imports that read it

import torch
import transformers
from peft import LoraConfig, get_peft_model

BATCH, LENGTH = 4, 512


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--steps", type=int, default=8)
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-4, weight_decay=0.0)
    ids = torch.randint(0, config.vocab_size, (BATCH, LENGTH))
    seconds = []
    for _ in range(args.steps + 1):
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[1:])
    print(
        json.dumps(
            {
                "implementation": f"torch {torch.__version__.split('+')[0]} + peft, sdpa",
                "threads": args.threads,
                "parameters": sum(p.numel() for p in model.parameters()),
                "step_seconds": round(median, 3),
                "tokens_per_second": round(BATCH * LENGTH / median, 1),
                "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
                "loss": round(loss.item(), 4),
            }
        )
    )


if __name__ == "__main__":
    main()
