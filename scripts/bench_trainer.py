#!/usr/bin/env python3
"""Training speed and memory beside PyTorch + PEFT (`make bench-trainer`), with nothing but the standard library.

  scripts/bench_trainer.py [--runs 5] [--write] [--python PYTHON] [--bench target/release/examples/bench_step]

Makes a virtual environment with torch, transformers and peft below target/ unless it is there (or --python names an
interpreter that has them), writes the cases with scripts/bench_peft.py, and runs both sides in turn, each run a process
of its own. Prints medians and their ratios, and what is compared as a check: the loss of every step. With --write the
table is added to docs/benchmarks/trainer.md.

Both sides get the same threads. PyTorch gets tcmalloc when Debian's libtcmalloc-minimal4 is installed: that is its
fastest allocator of those tried (glibc's, glibc's with huge pages).
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / "target"
RELEASE = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", TARGET)) / "release"
PACKAGES = ["torch==2.15.0", "transformers==5.23.0", "peft==0.21.2"]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TCMALLOC = pathlib.Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4")
REPORT = ROOT / "docs" / "benchmarks" / "trainer.md"

# Case, threads, steps after the warm-up step, what it is.
CASES = [
    ("small", 2, 4, "hidden 512 x 8 layers, 4 x 512 tokens"),
    ("small", 1, 2, "the same, one thread"),
    ("smollm", 2, 2, "SmolLM2-135M's configuration, 2 x 1024 tokens"),
    ("chat", 2, 5, "the small model, 40 conversations, batches of 8"),
]
# Textbook work per token of the small case: 4 for every weight of the base and 6 for every one of the adapters, and six
# products over half a square for attention. What is computed twice does not count.
WORK = 4 * (8 * (2 * 512 * 512 + 2 * 512 * 256 + 3 * 512 * 1376) + 8192 * 512)
WORK += 6 * 8 * 16 * (2 * 1024 + 2 * 768 + 3 * 1888) + 12 * 256 * 512 * 8


def reachable(url):
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except OSError:
        return False
    return True


def python_with_packages(given):
    if given:
        return given
    home = TARGET / "bench-venv"
    python = home / "bin" / "python"
    if not (home / "ready").exists():
        print(f"making {home} with {', '.join(PACKAGES)}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        # The smaller CPU build where its index can be reached, else the default one; they compute alike.
        index = ["--extra-index-url", CPU_INDEX] if reachable(CPU_INDEX) else []
        subprocess.run([python, "-m", "pip", "install", "--quiet", *index, *PACKAGES], check=True)
        (home / "ready").touch()
    return str(python)


def run(command, env=None):
    done = subprocess.run(command, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


class Sides:
    def __init__(self, python, bench):
        self.commands = {"hone": [bench], "peft": [python, ROOT / "scripts" / "bench_peft.py", "run"]}
        self.env = {"peft": {"LD_PRELOAD": str(TCMALLOC)} if TCMALLOC.exists() else {}}

    def run(self, side, case, threads, steps, *more):
        size = ["--threads", str(threads), "--steps", str(steps)]
        return run([*self.commands[side], TARGET / "bench-cases" / case, *size, *more], self.env.get(side))

    def compare(self, runs, case, threads, steps, *more):
        """Both sides in turn, `runs` times."""
        found = {"hone": [], "peft": []}
        for _ in range(runs):
            for side, reports in found.items():
                started = ["--started", f"{time.time():.3f}"] if "--started" in more else []
                reports.append(self.run(side, case, threads, steps, *[m for m in more if m != "--started"], *started))
        return found


def median(reports, key):
    return statistics.median(r[key] for r in reports)


def row(what, threads, found):
    hone, peft = found["hone"], found["peft"]
    speed = [median(side, "tokens_per_second") for side in (hone, peft)]
    cpu = [median(side, "tokens_per_cpu_second") for side in (hone, peft)]
    memory = [max(r["peak_mib"] for r in side) for side in (hone, peft)]
    losses = list(zip(hone[0]["losses"], peft[0]["losses"]))
    apart = max(abs(a - b) for a, b in losses)
    return (
        f"| {what} | {threads} | {speed[0]:.0f} | {speed[1]:.0f} | {speed[0] / speed[1]:.2f} "
        f"| {cpu[0] / cpu[1]:.2f} | {memory[0]:.0f} | {memory[1]:.0f} | {memory[0] / memory[1]:.2f} | {apart:.1e} |"
    )


def share_of_peak(found):
    """Useful work on one thread over the fastest square product of either side, in processor time."""
    peaks = {}
    for reports in found.values():
        for report in reports:
            for name, value in report["peak_gflops"].items():
                peaks[name] = max(value, peaks.get(name, 0.0))
    rate = median(found["hone"], "tokens_per_cpu_second") * WORK / 1e9
    listed = ", ".join(f"{name} {value:.1f}" for name, value in sorted(peaks.items()))
    best = max(peaks.values())
    return f"One thread, GFLOP/s of a 2048 x 2048 product: {listed}. Useful work: {rate:.1f}, {100 * rate / best:.0f} % of the best."


def first_step(found):
    hone, peft = (median(found[side], "first_step_seconds") for side in ("hone", "peft"))
    return f"From process start to the end of the first step, hone-tiny's configuration, 4 x 128 tokens: {hone:.2f} s; PyTorch {peft:.2f} s."


def machine():
    model = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    load = os.getloadavg()[0]
    return f"{model}, {os.cpu_count()} cores, load when it began {load:.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--python", default=os.environ.get("HONE_BENCH_PYTHON"))
    parser.add_argument("--bench", type=pathlib.Path, default=RELEASE / "examples" / "bench_step")
    args = parser.parse_args()
    sides = Sides(python_with_packages(args.python), args.bench)
    where = machine()
    cases = TARGET / "bench-cases"
    if not (cases / "ready").exists():
        prepare = [sides.commands["peft"][0], ROOT / "scripts" / "bench_peft.py", "prepare", cases]
        subprocess.run(prepare, check=True, stderr=subprocess.DEVNULL)
        (cases / "ready").touch()

    lines = [
        f"## {datetime.date.today()}, {where}",
        "",
        f"Medians of {args.runs} runs of each side in turn; float32, LoRA r 16 on every projection, AdamW, clipping."
        f" PyTorch's allocator: {'tcmalloc' if TCMALLOC.exists() else 'glibc'}.",
        "",
        "| case | threads | tokens/s | PyTorch + PEFT | ratio | ratio by processor time | peak MiB | PyTorch | ratio | largest difference of loss |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    notes = []
    for case, threads, steps, what in CASES:
        more = ["--peak"] if threads == 1 else []
        found = sides.compare(args.runs, case, threads, steps, *more)
        lines.append(row(what, threads, found))
        print(lines[-1], file=sys.stderr)
        if more:
            notes.append(share_of_peak(found))
    notes.append(first_step(sides.compare(args.runs, "tiny", 2, 1, "--started")))
    text = "\n".join([*lines, "", *[f"- {note}" for note in notes], ""])
    print(text)
    if args.write:
        head = REPORT.read_text() if REPORT.exists() else ""
        REPORT.write_text(head.rstrip() + "\n\n" + text)


if __name__ == "__main__":
    main()
