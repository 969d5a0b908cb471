#!/usr/bin/env python3
"""Measures how fast the backend takes what trainers report, and how fast it passes it on.

  scripts/bench_callbacks.py BIN_DIR EXAMPLES_DIR [--data DIR] [--seconds 60] [--write]

Starts `hone up` (Postgres with fsync, row security, token checks: what users run) in DIR with as many external jobs as
clients, and loads the backend from the same machine with examples/load_callbacks and load_streams:

  batches  32 clients, 100 events of 4 values each in a request, as fast as they go
  singles  256 clients, one event in a request, as fast as they go
  paced    the same at half of that rate; every request timed from when it was due
  kill     the same while the backend is killed (SIGKILL) and `hone up` starts it again; what was acknowledged must be stored
  streams  2,000 WebSocket clients on one job; every event timed from the trainer's request to each client

Prints a table; --write also puts it into docs/benchmarks/callbacks.md. Standard library only.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import time

from bench_api import ROOT, Hone, external_job, progress

TICK = os.sysconf("SC_CLK_TCK")


def load(program, spec):
    done = subprocess.run([program], input=json.dumps(spec), capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{program.name} failed: {done.stderr}")
    return json.loads(done.stdout)


class Bench:
    def __init__(self, hone, examples, clients):
        self.hone, self.examples = hone, examples
        connection = hone.connect()
        hone.run("models", "import", str(ROOT / "assets/hone-tiny"), "--name", "hone-tiny")
        hone.run("datasets", "upload", str(ROOT / "assets/demo/train.jsonl"), "--name", "rows")
        made = [external_job(hone, connection, f"bench-{i}") for i in range(clients)]
        self.jobs = [{"id": job["id"], "token": job["external"]["token"], "seq": 0} for job in made]

    def spec(self, clients, events, seconds, rate=None):
        return {"address": self.hone.url.netloc, "seconds": seconds, "events": events, "values": 4, "rate": rate, "jobs": self.jobs[:clients]}

    def callbacks(self, *spec):
        seen = load(self.examples / "load_callbacks", self.spec(*spec))
        self.settle(seen)
        return seen

    def settle(self, seen):
        """Everything acknowledged is stored, and nothing twice."""
        for job, acked in zip(self.jobs, seen["acked"]):
            job["seq"] = acked
        stored = dict(
            line.split("|") for line in self.hone.sql("SELECT job_id, count(*) || ' ' || max(seq) FROM job_events WHERE seq IS NOT NULL GROUP BY job_id").splitlines()
        )
        for job in self.jobs[: len(seen["acked"])]:
            count, last = map(int, stored.get(job["id"], "0 0").split())
            # A request that was answered by nobody may have been stored.
            if count != last or last < job["seq"]:
                sys.exit(f"job {job['id']}: {job['seq']} events acknowledged, {count} stored, the last one {last}")
            job["seq"] = last

    def backend(self):
        ready = json.loads((self.hone.data / "run/backend.ready").read_text())
        return ready["pid"]

    def kill(self, clients, rate):
        """Milliseconds from the new process's start to its first answer; and what the load saw."""
        program = self.examples / "load_callbacks"
        running = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        running.stdin.write(json.dumps(self.spec(clients, 1, 20, rate)))
        running.stdin.close()
        time.sleep(6)
        old = self.backend()
        killed = time.monotonic()
        os.kill(old, signal.SIGKILL)
        while True:
            try:
                if self.backend() != old:
                    break
            except (OSError, ValueError):
                pass
            time.sleep(0.002)
        # The ready file is written once it listens.
        listens = time.clock_gettime(time.CLOCK_BOOTTIME)
        fields = pathlib.Path(f"/proc/{self.backend()}/stat").read_text().rpartition(")")[2].split()
        ready_ms = (listens - int(fields[19]) / TICK) * 1e3
        away_ms = (time.monotonic() - killed) * 1e3
        seen = json.loads(running.stdout.read())
        if running.wait() != 0:
            sys.exit("the load failed")
        self.settle(seen)
        return ready_ms, away_ms, seen

    def streams(self, clients, events, rate):
        job = external_job(self.hone, self.hone.connect(), "watched")
        spec = {"address": self.hone.url.netloc, "api_key": self.hone.key, "job": job["id"], "job_token": job["external"]["token"],
                "clients": clients, "events": events, "rate": rate}  # fmt: skip
        return load(self.examples / "load_streams", spec)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bin_dir", type=pathlib.Path)
    parser.add_argument("examples", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "target/bench-callbacks")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks/callbacks.md")
    options = parser.parse_args()
    if options.data.exists():
        sys.exit(f"{options.data} exists; remove it, or give another --data")
    with Hone(options.bin_dir.resolve(), options.data.resolve()) as hone:
        bench = Bench(hone, options.examples.resolve(), 256)
        batches = bench.callbacks(32, 100, options.seconds)
        progress(f"batches: {batches['events'] / batches['seconds']:,.0f} events/s, p99 {batches['p99_ms']:.0f} ms")
        singles = bench.callbacks(256, 1, options.seconds)
        most = singles["requests"] / singles["seconds"]
        progress(f"singles: {most:,.0f} callbacks/s, p99 {singles['p99_ms']:.0f} ms")
        paced = bench.callbacks(256, 1, options.seconds, most / 2)
        progress(f"at half of it: p50 {paced['p50_ms']:.1f} ms, p99 {paced['p99_ms']:.1f} ms")
        ready_ms, away_ms, killed = bench.kill(256, most / 4)
        progress(f"killed: listening {ready_ms:.0f} ms after its start, {away_ms:.0f} ms after the kill")
        streams = bench.streams(2000, 60, 3)
        progress(f"streams: p50 {streams['p50_ms']:.0f} ms, p99 {streams['p99_ms']:.0f} ms")
        fsync, version = hone.sql("SHOW fsync"), hone.sql("SHOW server_version").split()[0]
    rows = [
        ("events in batches of 100, 32 clients", f"{batches['events'] / batches['seconds']:,.0f} events/s for {batches['seconds']:.0f} s", "≥ 10,000 events/s for 60 s"),
        ("callbacks of one event, 256 clients", f"{most:,.0f} callbacks/s for {singles['seconds']:.0f} s", "≥ 4,000 callbacks/s"),
        (f"the same at {paced['requests'] / paced['seconds']:,.0f} callbacks/s", f"p50 {paced['p50_ms']:.1f} ms, p99 {paced['p99_ms']:.1f} ms, largest {paced['max_ms']:.0f} ms", "p99 ≤ 50 ms"),
        ("`kill -9` under load", f"listening {ready_ms:.0f} ms after its start; {killed['longest_silence_ms']:.0f} ms without an acknowledgement; "
         f"{killed['events']:,} acknowledged events, all stored once", "≤ 1 s; none missing"),
        ("2,000 WebSocket clients on one job, 3 events/s", f"p50 {streams['p50_ms']:.0f} ms, p99 {streams['p99_ms']:.0f} ms of {streams['messages']:,} messages", "p99 ≤ 250 ms"),
    ]  # fmt: skip
    text = "\n".join([
        "| what | measured | bar |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows), "",
        f"{datetime.date.today()}, {os.cpu_count()} processors ({platform.machine()}), Postgres {version} with fsync {fsync}; load and database "
        "on the same machine.",
    ])  # fmt: skip
    print(text)
    if options.write:
        path = ROOT / "docs/benchmarks/callbacks.md"
        before = path.read_text().split("<!-- table -->")[0]
        path.write_text(f"{before}<!-- table -->\n\n{text}\n")


if __name__ == "__main__":
    main()
