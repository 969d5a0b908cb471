#!/usr/bin/env python3
"""Measures the images that scripts/images.sh built: bench_images.py [TAG]

Prints sizes, and how long the trainer's image takes from `docker run` until the first optimizer step on the base model it
brings is done and its checkpoint written (median of five), as rows for docs/benchmarks/containers.md. Standard library only.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """model: hone-tiny
dataset: demo
training: {max_steps: 1, save_steps: 1, val_set_size: 0, max_seq_length: 256}
"""


def docker(*arguments):
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def first_step(tag, directory):
    command = ["docker", "run", "--rm", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--network", "none"]
    command += ["--volume", f"{ROOT}/assets/demo:/data:ro", "--volume", f"{directory}:/config:ro", f"hone-trainer:{tag}", "run"]
    command += ["--model", "/usr/share/hone/models/hone-tiny", "--config", "/config/train.yaml"]
    command += ["--data", "/data/train.jsonl", "--out", "/tmp/out"]
    begun = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("checkpoint of step 1 "):
                return time.monotonic() - begun
    sys.exit("the trainer made no step:\n" + "".join(said))


def main():
    tag = sys.argv[1] if len(sys.argv) > 1 else "dev"
    for image, limit in [("backend", 60), ("storage-gateway", 60), ("trainer", 100)]:
        size = int(docker("image", "inspect", "--format", "{{.Size}}", f"hone-{image}:{tag}"))
        print(f"| size of `hone-{image}` | {size / 1e6:.1f} MB | < {limit} MB |")
    with tempfile.TemporaryDirectory() as directory:
        # The container's user is another one.
        os.chmod(directory, 0o755)
        Path(directory, "train.yaml").write_text(CONFIG)
        times = [first_step(tag, directory) for _ in range(5)]
    print(f"| `docker run` to the first optimizer step, median of 5 | {statistics.median(times):.2f} s | ≤ 2 s |")
    print(f"| the same, slowest | {max(times):.2f} s | |")


main()
