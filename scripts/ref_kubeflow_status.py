#!/usr/bin/env python3
"""Trains a tiny random model with Hugging Face's Trainer, unmodified, and lets it report to a Hone job.

    scripts/ref_kubeflow_status.py HONE_URL API_KEY MODEL DATASET

MODEL and DATASET are what the job is about, by their names in Hone. Transformers reports by itself once
KUBEFLOW_TRAINER_SERVER_URL is set; it posts at most every 5 s, so every step of the 20 waits for a while. Prints the
job's curve as Hone has it, and fails unless it equals what the trainer logged. Versions: transformers 5.23, torch 2.15.
"""

import json
import os
import sys
import tempfile
import time
import urllib.request

url, key, model_name, dataset_name = sys.argv[1:]


def hone(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url + path, data=data, headers=headers), timeout=30) as reply:
        return json.load(reply)


job = hone("/training/jobs", {"config": {"model": model_name, "dataset": dataset_name}, "trainer": "external"})
token = tempfile.NamedTemporaryFile("w", suffix=".token")
token.write(job["external"]["token"])
token.flush()
os.environ["KUBEFLOW_TRAINER_SERVER_URL"] = job["external"]["status_url"]
os.environ["KUBEFLOW_TRAINER_SERVER_TOKEN"] = token.name

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

print(f"transformers {transformers.__version__}, torch {torch.__version__}, job {job['id']}")


class Slow(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        time.sleep(0.7)


torch.manual_seed(0)
shape = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=2))
rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (80, 16))]
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, max_steps=20, per_device_train_batch_size=4, logging_steps=1, use_cpu=True, save_strategy="no",
        disable_tqdm=True, report_to="kubeflow", learning_rate=1e-3,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[Slow()])
    trainer.train()

deadline = time.monotonic() + 30
while (view := hone(f"/training/jobs/{job['id']}"))["state"] not in ("succeeded", "failed"):
    assert time.monotonic() < deadline, view
    time.sleep(0.2)
print(f"state {view['state']}, step {view['progress']['step']} of {view['progress']['total_steps']}")
logged = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
points = hone(f"/training/jobs/{job['id']}/metrics")["items"]
for point in points:
    print(f"step {point['step']:2}  " + "  ".join(f"{k} {v:.6g}" for k, v in sorted(point["values"].items())))
assert view["state"] == "succeeded" and view["progress"]["step"] == 20, view
# A report is posted at the end of a step and logged after it, so it carries the values of the step before.
for point in points:
    near = {logged.get(point["step"]), logged.get(point["step"] - 1)}
    assert point["values"].get("train_loss") in near | {None}, point
assert len(points) >= 3 and points[-1]["values"]["mean_train_loss"], points
print("Hone has what the trainer logged")
