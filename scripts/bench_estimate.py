#!/usr/bin/env python3
"""Compares `hone-trainer estimate` with what the run then used, over configurations of every kind.

  scripts/bench_estimate.py [--trainer FILE] [--out OUT.md] [--divide N] [--only REGEX]

By default it takes target/release/hone-trainer, runs everything, and writes docs/benchmarks/estimate.md. `--divide`
makes the runs shorter by that factor; with `--only` (names of configurations) nothing is written.

Every configuration is estimated, then run to its end, each in a process of its own on one thread. Memory is the
peak of the run's resident set (VmHWM). Duration is wall time on an idle machine; on a busy one processor time tells
more, so both are shown, the prediction scaled by the share of a core that the rehearsal got. Models have random
weights and are made here; nothing is downloaded. Exits 1 when memory was underestimated, or overestimated by more
than 15 %, or the duration is off by more than 20 %.
"""

import argparse
import json
import os
import pathlib
import random
import re
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "crates/trainer/tests/fixtures"

# hidden, layers, intermediate, heads, key/value heads, vocabulary, stored as
MODELS = {
    "tiny": (128, 4, 344, 4, 2, 512, "F32"),
    "small": (256, 6, 688, 8, 4, 4096, "F32"),
    "base": (512, 8, 1376, 8, 4, 8192, "BF16"),
    "wide": (384, 4, 1024, 6, 6, 32000, "F32"),
}
# hidden, layers, intermediate, heads, vocabulary; the architecture is BERT
ENCODERS = {"encoder": (256, 6, 1024, 4, 8192)}
DPO, CLASSES = {"method": "dpo"}, {"method": "classification"}
# name: model, rows' largest length in characters, configuration, training section
CASES = {
    "LoRA, batch 4": ("small", 300, {}, {"max_steps": 60}),
    "LoRA, batch 1": ("small", 300, {}, {"max_steps": 160, "per_device_train_batch_size": 1}),
    "LoRA r 4 on q and v": ("small", 300, {"lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]}}, {"max_steps": 60}),
    "LoRA, packed": ("small", 120, {}, {"max_steps": 25, "packing": True}),
    "LoRA, recomputed": ("small", 300, {}, {"max_steps": 50, "gradient_checkpointing": True}),
    "LoRA, accumulated 4 times": ("tiny", 300, {}, {"max_steps": 60, "gradient_accumulation_steps": 4}),
    "LoRA, dropout": ("small", 300, {"lora": {"lora_dropout": 0.1}}, {"max_steps": 50}),
    "DoRA": ("small", 300, {"lora": {"use_dora": True}}, {"max_steps": 40}),
    "LoRA, bf16 base, 8 layers of 512": ("base", 400, {}, {"max_steps": 16}),
    "LoRA, long rows": ("small", 1500, {}, {"max_steps": 25, "max_seq_length": 1024}),
    "LoRA, vocabulary 32,000": ("wide", 300, {}, {"max_steps": 40}),
    "LoRA, evaluated often": ("tiny", 300, {}, {"max_steps": 150, "eval_steps": 15, "save_steps": 15}),
    "full": ("small", 300, {"method": "full"}, {"max_steps": 40}),
    "full, 8-bit moments": ("small", 300, {"method": "full"}, {"max_steps": 40, "optim": "adamw_8bit"}),
    "full, bf16 base": ("base", 300, {"method": "full"}, {"max_steps": 10, "learning_rate": 1e-5}),
    "full, accumulated 4 times": ("small", 300, {"method": "full"}, {"max_steps": 12, "gradient_accumulation_steps": 4}),
    "DPO": ("small", 300, DPO, {"max_steps": 25, "per_device_train_batch_size": 2}),
    "DPO, recomputed, bf16 base": ("base", 300, DPO, {"max_steps": 8, "per_device_train_batch_size": 2, "gradient_checkpointing": True}),
    "classification, LoRA": ("encoder", 600, CLASSES, {"max_steps": 60, "per_device_train_batch_size": 8}),
    "classification, all weights": ("encoder", 600, CLASSES | {"classification": {"tuning": "full"}}, {"max_steps": 40, "per_device_train_batch_size": 8}),
}


def tensors(hidden, layers, inner, heads, kv, vocab):
    head = hidden // heads
    yield "model.embed_tokens.weight", (vocab, hidden)
    yield "model.norm.weight", (hidden,)
    for i in range(layers):
        block = f"model.layers.{i}"
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv * head, hidden),
            "self_attn.v_proj": (kv * head, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            yield f"{block}.{name}.weight", shape
        yield f"{block}.input_layernorm.weight", (hidden,)
        yield f"{block}.post_attention_layernorm.weight", (hidden,)


def encoder_tensors(hidden, layers, inner, vocab):
    def linear(path, out, inputs):
        yield f"{path}.weight", (out, inputs)
        yield f"{path}.bias", (out,)

    def norm(path):
        yield f"{path}.LayerNorm.weight", (hidden,)
        yield f"{path}.LayerNorm.bias", (hidden,)

    for name, rows in (("word", vocab), ("position", 512), ("token_type", 2)):
        yield f"bert.embeddings.{name}_embeddings.weight", (rows, hidden)
    yield from norm("bert.embeddings")
    for i in range(layers):
        block = f"bert.encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            yield from linear(f"{block}.attention.{name}", hidden, hidden)
        yield from norm(f"{block}.attention.output")
        yield from linear(f"{block}.intermediate.dense", inner, hidden)
        yield from linear(f"{block}.output.dense", hidden, inner)
        yield from norm(f"{block}.output")
    yield from linear("bert.pooler.dense", hidden, hidden)


def make_model(where, hidden, layers, inner, heads, kv, vocab, dtype):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": {"F32": "float32", "BF16": "bfloat16"}[dtype],
    }
    write_model(where, "ref_lora", config, tensors(hidden, layers, inner, heads, kv, vocab), dtype)


def make_encoder(where, hidden, layers, inner, heads, vocab):
    config = {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocab,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "torch_dtype": "float32",
    }
    write_model(where, "ref_bert", config, encoder_tensors(hidden, layers, inner, vocab), "F32")


def write_model(where, fixture, config, wanted, dtype):
    where.mkdir()
    for f in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (FIXTURES / fixture / "model" / f).exists():
            (where / f).write_bytes((FIXTURES / fixture / "model" / f).read_bytes())
    (where / "config.json").write_text(json.dumps(config))
    size = {"F32": 4, "BF16": 2}[dtype]
    pack = lambda x: struct.pack("<f", x)[4 - size :]
    rng = random.Random(1)
    noise = b"".join(pack(rng.gauss(0, 0.04)) for _ in range(99991))  # a prime, so that rows differ
    header, data, offset = {}, [], 0
    for name, shape in wanted:
        n = 1
        for d in shape:
            n *= d
        raw = pack(1.0) * n if len(shape) == 1 else (noise * (n * size // len(noise) + 1))[: n * size]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + n * size]}
        offset += n * size
        data.append(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(where / "model.safetensors", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for raw in data:
            f.write(raw)


def make_data(path, longest, method):
    rng = random.Random(2)
    words = "the quick brown fox jumps over a lazy dog and then it rests".split()
    say = lambda n: " ".join(rng.choice(words) for _ in range(max(1, n // 5)))
    with open(path, "w") as f:
        for _ in range(400):
            n = rng.randint(longest // 8, longest)
            if method == "classification":
                row = {"text": say(n), "label": rng.choice(("good", "bad", "neither"))}
            elif method == "dpo":
                row = {"prompt": say(n // 3), "chosen": say(n - n // 3), "rejected": say(rng.randint(n // 3, n))}
            else:
                chat = [{"role": "user", "content": say(n // 3)}, {"role": "assistant", "content": say(n - n // 3)}]
                row = {"messages": chat}
            f.write(json.dumps(row) + "\n")


def high_water(pid):
    """Peak resident bytes so far. What wait4 says would include this script, from before the exec."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def measure(command):
    """Output, wall seconds, processor seconds, peak resident bytes."""
    env = {"HONE_THREADS": "1", "PATH": os.environ["PATH"]}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        began = time.monotonic()
        child = subprocess.Popen(command, stdout=output, stderr=errors, env=env)
        peak, ended = 0, 0
        while not ended:
            peak = max(peak, high_water(child.pid))
            ended, status, usage = os.wait4(child.pid, os.WNOHANG)
            time.sleep(0.01)
        took = time.monotonic() - began
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0), errors.seek(0)
        if child.returncode:
            sys.exit(f"{' '.join(command)}: {errors.read()}")
        return output.read(), took, usage.ru_utime + usage.ru_stime, peak


def arguments():
    parser = argparse.ArgumentParser(description="Compares estimates with runs.")
    parser.add_argument("--trainer", type=pathlib.Path, default=ROOT / "target/release/hone-trainer")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs/benchmarks/estimate.md")
    parser.add_argument("--divide", type=int, default=1)
    parser.add_argument("--only", type=re.compile)
    return parser.parse_args()


def compare(trainer, work, model, longest, config, training, divisor):
    """What was said and what was used, as one row of the table, and whether memory and duration are within limits."""
    work.mkdir()
    make_data(work / "data.jsonl", longest, config.get("method"))
    settings = {"save_steps": 0, "eval_steps": 0, "max_seq_length": 512} | training
    settings["max_steps"] = max(1, settings["max_steps"] // divisor)
    (work / "config.json").write_text(json.dumps(config | {"training": settings}))
    inputs = ["--config", str(work / "config.json"), "--model", str(model), "--data", str(work / "data.jsonl")]
    told, wall, cpu, _ = measure([trainer, "estimate", "--json", *inputs])
    told, share = json.loads(told), min(1.0, cpu / wall)
    _, took, used, peak = measure([trainer, "run", *inputs, "--out", str(work / "out")])
    memory = told["peak_memory_bytes"] / peak
    seconds, processor = told["total_seconds"] / took, told["total_seconds"] * share / used
    mb = lambda b: f"{b / 1e6:.0f}"
    row = [mb(told["peak_memory_bytes"]), mb(peak), f"{memory:.3f}", f"{told['total_seconds']:.1f}",
           f"{took:.1f}", f"{seconds:.2f}", f"{processor:.2f}", f"{told['rehearsal_seconds']:.1f}"]
    return row, 1.0 <= memory <= 1.15, abs(seconds - 1) <= 0.2, abs(processor - 1) <= 0.2


def main():
    options = arguments()
    trainer = str(options.trainer.resolve())
    before = " / ".join(f"{x:.1f}" for x in os.getloadavg())
    lines, verdicts = [], []
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        for name, shape in MODELS.items():
            make_model(tmp / name, *shape)
        for name, shape in ENCODERS.items():
            make_encoder(tmp / name, *shape)
        for number, (name, (model, longest, config, training)) in enumerate(CASES.items()):
            if options.only and not options.only.search(name):
                continue
            row, *good = compare(trainer, tmp / str(number), tmp / model, longest, config, training, options.divide)
            verdicts.append(good)
            marks = " ".join(m for m, g in zip(("memory", "duration", "processor time"), good) if not g)
            lines.append("| " + " | ".join([name, *row, marks]) + " |")
            print(lines[-1], flush=True)
    head = ["configuration", "MB said", "MB used", "ratio", "s said", "s took", "ratio", "ratio of processor time",
            "rehearsal s", "outside the limits"]
    within = [sum(column) for column in zip(*verdicts)]
    tell = lambda n: f"{n} of {len(lines)}, {'met' if n == len(lines) else 'missed'}"
    bars = (
        "| bar | within |\n|---|---|\n"
        f"| peak memory between what was used and 15 % more | {tell(within[0])} |\n"
        f"| duration within 20 % of wall time | {tell(within[1])} |\n"
        f"| duration within 20 % of processor time (the one to read on a busy machine) | {tell(within[2])} |\n"
    )
    print(bars)
    if not options.only:
        build = "release build" if "release" in trainer else "development build"
        options.out.write_text(
            "# Pre-flight beside what runs used\n\n"
            f"Made by `scripts/bench_estimate.py` on {time.strftime('%Y-%m-%d')}: {build}, one thread, {os.cpu_count()} cores "
            f"(load average before: {before}), steps divided by {options.divide}.\n\n"
            + bars + "\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|\n" + "\n".join(lines) + "\n"
        )
    sys.exit(0 if within[0] == len(lines) and max(within[1:]) == len(lines) else 1)


if __name__ == "__main__":
    main()
