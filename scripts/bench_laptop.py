#!/usr/bin/env python3
"""Measures the laptop tier with the real binaries and prints a Markdown table.

  scripts/bench_laptop.py BIN_DIR     e.g. target/release

What is measured, on a private data directory that is removed afterwards:
  up, fresh        `hone up --detach` on an empty directory (initdb included)
  up, existing     the same directory again, after `hone down` (median of 5)
  idle memory      backend + gateway, 10 s after start (resident and proportional set size)
  first step       POST /training/jobs until the metrics route shows step 1 (first, and median of 5)
  cancel           `hone jobs cancel` until no trainer process is left (median of 5)
Standard library only.
"""
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
BIN = pathlib.Path(sys.argv[1]).resolve() if len(sys.argv) == 2 else sys.exit(__doc__)
HONE = BIN / "hone"
DATA = pathlib.Path(tempfile.mkdtemp(prefix="hone-bench-"))
DATA.chmod(0o755)
ENV = {k: v for k, v in os.environ.items() if k not in ("HONE_URL", "HONE_API_KEY")} | {"HONE_DATA_DIR": str(DATA)}
UP = ("up", "--data-dir", str(DATA), "--port", "0", "--detach")


def hone(*args):
    """Runs the command; returns how long it took in seconds."""
    start = time.monotonic()
    done = subprocess.run([HONE, *args], env=ENV, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        sys.exit(f"hone {' '.join(args)} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.monotonic() - start


def api(method, path, body=None):
    """Calls the backend; returns the decoded JSON reply."""
    connection = json.loads((DATA / "connection.json").read_text())
    request = urllib.request.Request(connection["url"] + path, method=method)
    request.add_header("authorization", "Bearer " + connection["api_key"])
    request.add_header("content-type", "application/json")
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(request, data, timeout=30) as reply:
        return json.loads(reply.read())


def processes(name):
    """Pids whose executable is `name` from BIN."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "exe") == str(BIN / name):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def memory(pid):
    """(resident, proportional) set size in MiB."""
    def kib(file, key):
        lines = pathlib.Path(f"/proc/{pid}/{file}").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1])
    return kib("status", "VmRSS:") / 1024, kib("smaps_rollup", "Pss:") / 1024


def wait(condition, what, limit=120.0):
    """Polls `condition` every 10 ms."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > limit:
            sys.exit(f"waited {limit} s for {what}")
        time.sleep(0.01)


def first_step(config):
    start = time.monotonic()
    job = api("POST", "/training/jobs", {"config": config})["id"]
    metrics = f"/training/jobs/{job}/metrics?limit=20"
    wait(lambda: any(p["step"] >= 1 for p in api("GET", metrics)["items"]), "the first step")
    return job, time.monotonic() - start


def cancel(job):
    start = time.monotonic()
    hone("jobs", "cancel", job)
    wait(lambda: not processes("hone-trainer"), "the trainer to end", 30)
    seconds = time.monotonic() - start
    wait(lambda: api("GET", f"/training/jobs/{job}")["state"] == "cancelled", "the job to be cancelled", 30)
    return seconds


def measure():
    demo = ROOT / "assets/demo"
    yield "`hone up`, empty data directory", hone(*UP), "s"
    hone("models", "import", str(ROOT / "assets/hone-tiny"), "--name", "hone-tiny")
    hone("datasets", "upload", str(demo / "train.jsonl"), "--name", "demo", "--validation", str(demo / "validation.jsonl"))
    starts = []
    for _ in range(5):
        hone("down")
        starts.append(hone(*UP))
    yield "`hone up`, existing data directory, median of 5", statistics.median(starts), "s"
    time.sleep(10)
    usage = [memory(p) for name in ("hone-backend", "hone-gateway") for p in processes(name)]
    yield "idle memory of backend + gateway, resident set", sum(u[0] for u in usage), "MiB"
    yield "idle memory of backend + gateway, proportional set", sum(u[1] for u in usage), "MiB"
    config = {"model": "hone-tiny", "dataset": "demo",
              "training": {"num_train_epochs": 100, "eval_steps": 0, "save_steps": 0}}
    steps, cancels = [], []
    for _ in range(5):
        job, seconds = first_step(config)
        steps.append(seconds)
        cancels.append(cancel(job))
    yield "job creation to first optimizer step, first job", steps[0], "s"
    yield "job creation to first optimizer step, median of 5", statistics.median(steps), "s"
    yield "`hone jobs cancel` until the process is gone, median of 5", statistics.median(cancels), "s"


try:
    results = list(measure())
    print("| what | measured |\n|---|---|")
    for what, value, unit in results:
        print(f"| {what} | {value:.2f} {unit} |")
finally:
    subprocess.run([HONE, "down"], env=ENV, capture_output=True, timeout=60)
    shutil.rmtree(DATA, ignore_errors=True)
