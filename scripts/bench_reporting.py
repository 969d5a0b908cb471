#!/usr/bin/env python3
"""Trains with the backend away and 20 % of the trainer's requests dropped, and compares the step times.

  scripts/bench_reporting.py BIN_DIR [--down SECONDS] [--window SECONDS] [--turns N] [--drop SHARE] [--write]     e.g. target/release --down 600

One run on a private data directory; all the while a proxy between trainer and backend drops SHARE (0.2) of the requests,
half of them before they arrive and half of the replies. First the backend is away for SECONDS (killed, and `hone up` kept
from starting it again). Then the proxy takes it away and gives it back in turns, WINDOW seconds each: a machine gets slower
and faster by itself by more than the 1 % in question, so each window without the backend is compared with the mean of the
two with it beside it. At last the job is paused, and every step must be in its log exactly once. Fails when the median of
those comparisons is 1 % or more. Standard library only.
"""
import argparse
import datetime
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
options.add_argument("bin", type=pathlib.Path)
options.add_argument("--down", type=float, default=600.0)
options.add_argument("--window", type=float, default=15.0)
options.add_argument("--turns", type=int, default=40, help="windows without the backend")
options.add_argument("--drop", type=float, default=0.2)
options.add_argument("--threads", type=int, default=1, help="of the trainer")
options.add_argument("--write", action="store_true", help="write docs/benchmarks/reporting.md")
options = options.parse_args()
HONE = options.bin.resolve() / "hone"
DATA = pathlib.Path(tempfile.mkdtemp(prefix="hone-reporting-"))
DATA.chmod(0o755)
LIMIT = 0.01


class Proxy:
    """Forwards connections to `port`, and breaks a share of the requests that pass."""

    def __init__(self, port, share):
        self.port, self.share, self.random = port, share, random.Random(1)
        self.requests = self.dropped = 0
        self.away = False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            if self.away:
                client.close()
                continue
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        try:
            with client, socket.create_connection(("127.0.0.1", self.port)) as server:
                while request := self.message(client):
                    if self.away:
                        return
                    self.requests += 1
                    fate = self.random.random()
                    if fate < self.share / 2:
                        self.dropped += 1
                        return
                    server.sendall(request)
                    reply = self.message(server)
                    if fate < self.share:
                        self.dropped += 1
                        return
                    client.sendall(reply)
        except OSError:
            # The backend is away, which is the point.
            return

    @staticmethod
    def message(sock):
        """One HTTP message with a content length, or nothing at the end of the connection."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = sock.recv(65536)
            if not piece:
                return b""
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        while len(body) < length:
            piece = sock.recv(65536)
            if not piece:
                return b""
            body += piece
        return head + b"\r\n\r\n" + body


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


PORT = free_port()
PROXY = Proxy(PORT, options.drop)
ENV = {k: v for k, v in os.environ.items() if k not in ("HONE_URL", "HONE_API_KEY")}
ENV |= {"HONE_DATA_DIR": str(DATA), "BACKEND_BASE_URL": PROXY.address, "HONE_THREADS": str(options.threads)}


def hone(*args):
    done = subprocess.run([HONE, *args], env=ENV, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        sys.exit(f"hone {' '.join(args)} failed with {done.returncode}:\n{done.stdout}{done.stderr}")


def api(method, path, body=None):
    connection = json.loads((DATA / "connection.json").read_text())
    request = urllib.request.Request(connection["url"] + path, method=method)
    request.add_header("authorization", "Bearer " + connection["api_key"])
    request.add_header("content-type", "application/json")
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(request, data, timeout=30) as reply:
        return json.loads(reply.read())


def wait(condition, what, limit=180.0):
    start = time.monotonic()
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        if time.monotonic() - start > limit:
            sys.exit(f"waited {limit} s for {what}")
        time.sleep(0.2)


def state():
    return json.loads((DATA / "state.json").read_text())


def backend():
    service = next(s for s in state()["services"] if s["name"] == "backend")
    return service["process"]["pid"]


def events(job):
    after = 0
    while True:
        page = api("GET", f"/training/jobs/{job}/events?after={after}&limit=200")["items"]
        if not page:
            return
        yield from page
        after = page[-1]["id"]


def run():
    hone("up", "--data-dir", str(DATA), "--port", str(PORT), "--detach")
    hone("models", "import", str(ROOT / "assets/hone-tiny"), "--name", "hone-tiny")
    hone("datasets", "upload", str(ROOT / "assets/demo/train.jsonl"), "--name", "demo")
    training = {"max_steps": 1_000_000, "num_train_epochs": 10_000, "eval_steps": 0, "save_steps": 0,
                "per_device_train_batch_size": 4}
    job = api("POST", "/training/jobs", {"config": {"model": "hone-tiny", "dataset": "demo", "training": training}})["id"]
    # The first steps are slower: caches and clocks.
    wait(lambda: api("GET", f"/training/jobs/{job}")["progress"]["step"] >= 50, "the first steps")
    now = lambda: datetime.datetime.now(datetime.timezone.utc)
    up, killed = state()["hone"]["pid"], backend()
    os.kill(up, signal.SIGSTOP)
    os.kill(killed, signal.SIGKILL)
    time.sleep(options.down)
    os.kill(up, signal.SIGCONT)
    wait(lambda: backend() != killed and api("GET", f"/training/jobs/{job}"), "the backend to be back")
    # What was kept back arrives.
    time.sleep(options.window)
    marks = [now()]
    for turn in range(2 * options.turns + 1):
        PROXY.away = turn % 2 == 1
        time.sleep(options.window)
        marks.append(now())
    PROXY.away = False
    hone("jobs", "pause", job)
    wait(lambda: api("GET", f"/training/jobs/{job}")["state"] == "paused", "the pause", 300)
    view = api("GET", f"/training/jobs/{job}")
    if view["attempt"] != 1:
        sys.exit(f"the trainer was replaced: {json.dumps(view, indent=1)}")

    windows, seen = [[] for _ in marks[1:]], {}
    for message in events(job):
        event = message.get("event", {})
        if event.get("type") != "metrics" or "train_loss" not in event["values"]:
            continue
        seen[event["step"]] = seen.get(event["step"], 0) + 1
        at = datetime.datetime.fromisoformat(event["at"].replace("Z", "+00:00"))
        index = sum(at >= mark for mark in marks) - 1
        if 0 <= index < len(windows):
            windows[index].append(event["values"]["step_seconds"] + event["values"].get("stall_seconds", 0.0))
    last = view["progress"]["step"]
    wrong = [step for step in range(1, last + 1) if seen.get(step) != 1] + [step for step in seen if step > last]
    if wrong:
        sys.exit(f"{len(wrong)} of {last} steps are not there exactly once, the first: {wrong[:10]}")
    return last, windows


def report(last, windows):
    medians = [statistics.median(w) * 1e3 for w in windows]
    turns = [medians[i] / ((medians[i - 1] + medians[i + 1]) / 2) - 1 for i in range(1, len(medians), 2)]
    growth = statistics.median(turns)
    # Of the median of a normal distribution.
    error = 1.253 * statistics.stdev(turns) / len(turns) ** 0.5
    rows = [
        ("backend away at a stretch", f"{options.down:.0f} s"),
        ("backend away in turns", f"{options.turns} times {options.window:.0f} s"),
        ("requests of the trainer that passed or were dropped", f"{PROXY.requests}, {PROXY.dropped} dropped"),
        ("steps, each in the log exactly once", str(last)),
        ("median step of the windows with the backend", f"{min(medians[::2]):.3f} to {max(medians[::2]):.3f} ms"),
        ("median step of the windows without it", f"{min(medians[1::2]):.3f} to {max(medians[1::2]):.3f} ms"),
        ("growth of a step without it (median over the turns, standard error)", f"{growth * 100:+.2f} % ± {error * 100:.2f} %"),
    ]
    text = "| what | measured |\n|---|---|\n" + "".join(f"| {a} | {b} |\n" for a, b in rows)
    print(text)
    if options.write:
        today = datetime.date.today().isoformat()
        head = ("# Reporting while the backend is away\n\nWritten by `scripts/bench_reporting.py BIN_DIR --down "
                f"{options.down:.0f} --write` on {today}, {os.cpu_count()} cores, a trainer of {options.threads} "
                "thread(s) on hone-tiny. A step's time includes what is between it and the one before.\n\n")
        (ROOT / "docs/benchmarks/reporting.md").write_text(head + text)
    if growth >= LIMIT:
        sys.exit(f"the median step grew by {growth * 100:.2f} %, the bar is {LIMIT * 100:.0f} %")


try:
    report(*run())
finally:
    if (DATA / "state.json").exists():
        try:
            os.kill(state()["hone"]["pid"], signal.SIGCONT)
        except (ProcessLookupError, KeyError, TypeError):
            pass
    subprocess.run([HONE, "down"], env=ENV, capture_output=True, timeout=60)
    shutil.rmtree(DATA, ignore_errors=True)
