#!/usr/bin/env python3
"""Kills backend, storage and database at random while jobs run, and then counts.

  scripts/soak.py BIN_DIR EXAMPLES_DIR [--minutes 15] [--jobs 200] [--live 20] [--seed N] [--data DIR] [--write]

`hone up` with real Postgres, real storage gateway and S3 server, and examples/script_trainer in the place of the trainer: it
reports steps, uploads an artifact, and notes every acknowledged event, durably, in a ledger of its own. For the given time one
of the three is killed (SIGKILL) every few seconds; `hone up` starts it again. Afterwards every job must reach its end, and then

  - every event in a ledger is stored with the same content, once;
  - the events of an attempt are numbered without gaps, and every step of it is there once;
  - every artifact of a succeeded job can be fetched, with the promised digest.

Exits with an error when anything is amiss. --write puts the figures into docs/benchmarks/soak.md. Standard library only.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import time
import urllib.request

from bench_api import ROOT, Hone, progress

PACE_MS = 500
TERMINAL = {"succeeded", "failed", "cancelled"}


class Stack(Hone):
    def __init__(self, bin_dir, examples, data, live):
        # `hone` takes the programs beside it.
        own = data.with_name(data.name + "-bin")
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        for program in ["hone", "hone-backend", "hone-gateway"]:
            shutil.copy2(bin_dir / program, own)
        shutil.copy2(examples / "script_trainer", own / "hone-trainer")
        super().__init__(own, data)
        self.env |= {"MAX_CONCURRENT_JOBS": str(live), "LEASE_SECONDS": "20", "RETRY_SECONDS": "1"}

    def pid(self, what):
        try:
            if what == "database":
                return int((self.data / "pg/postmaster.pid").read_text().split()[0])
            return json.loads((self.data / f"run/{what}.ready").read_text())["pid"]
        except (OSError, ValueError, IndexError):
            return None

    def patiently(self, call):
        """What is killed now and then answers now and then."""
        for _ in range(600):
            try:
                return call()
            except (OSError, SystemExit, ValueError):
                time.sleep(0.2)
        sys.exit("no answer for two minutes")


def chaos(stack, minutes, rng):
    kills, end = {"backend": 0, "gateway": 0, "database": 0}, time.monotonic() + 60 * minutes
    told = time.monotonic()
    while time.monotonic() < end:
        time.sleep(rng.uniform(2, 12))
        what = rng.choice(list(kills))
        pid = stack.pid(what)
        if pid:
            try:
                os.kill(pid, signal.SIGKILL)
                kills[what] += 1
            except ProcessLookupError:
                pass
        if time.monotonic() - told > 60:
            told = time.monotonic()
            progress(f"{(end - told) / 60:.0f} minutes to go; killed so far: {kills}")
    return kills


def states(stack):
    rows = stack.patiently(lambda: stack.sql("SELECT state, count(*) FROM training_jobs GROUP BY state"))
    return {state: int(count) for state, count in (line.split("|") for line in rows.splitlines())}


def stored(stack):
    """(job, attempt, seq) → event."""
    rows = stack.sql("SELECT job_id, attempt, seq, body -> 'event' FROM job_events WHERE seq IS NOT NULL ORDER BY 1, 2, 3")
    events, faults = {}, []
    for line in rows.splitlines():
        job, attempt, seq, body = line.split("|", 3)
        key = (job, int(attempt), int(seq))
        if key in events:
            faults.append(f"{key} is stored twice")
        events[key] = json.loads(body)
    return events, faults


def same(said, kept):
    """What was said is what is kept; the time may be written otherwise."""
    time_of = lambda event: datetime.datetime.fromisoformat(event["at"])
    rest = lambda event: {name: value for name, value in event.items() if name != "at"}
    return rest(said) == rest(kept) and time_of(said) == time_of(kept)


def judge(stack, ledgers):
    events, faults = stored(stack)
    acknowledged = 0
    for ledger in sorted(ledgers.iterdir()):
        job = stack.sql(f"SELECT id FROM training_jobs WHERE config ->> 'name' LIKE '%/{ledger.name}\"%'")
        for line in ledger.read_text().splitlines():
            attempt, event = json.loads(line)
            acknowledged += 1
            kept = events.get((job, attempt, event["seq"]))
            if kept is None or not same(event, kept):
                faults.append(f"job {job}, attempt {attempt}: event {event['seq']} was acknowledged and is {kept}")
    seqs, steps = {}, {}
    for (job, attempt, seq), event in events.items():
        seqs.setdefault((job, attempt), []).append(seq)
        if event["type"] == "metrics":
            steps.setdefault((job, attempt), []).append(event["step"])
    for key, numbers in seqs.items():
        if numbers != list(range(1, len(numbers) + 1)):
            faults.append(f"job and attempt {key}: gaps in {numbers}")
    for key, numbers in steps.items():
        if len(numbers) != len(set(numbers)):
            faults.append(f"job and attempt {key}: a step twice in {numbers}")
    points = stack.sql(
        "SELECT count(*) FROM (SELECT job_id, attempt, count(*) AS points, count(DISTINCT (step, name)) AS different FROM metrics_points "
        "GROUP BY 1, 2) p WHERE points <> different"
    )
    if points != "0":
        faults.append(f"{points} attempts have a point twice")
    return len(events), acknowledged, faults


def artifacts(stack):
    """Fetches what every succeeded job made; returns how many files, and what is wrong."""
    count, faults, connection = 0, [], stack.connect()
    manifests = stack.sql("SELECT j.id, a.manifest FROM training_jobs j JOIN job_attempts a ON a.job_id = j.id AND a.attempt = j.attempt "
                          "WHERE j.state = 'succeeded'")  # fmt: skip
    for line in manifests.splitlines():
        job, manifest = line.split("|", 1)
        files = {f["key"].rpartition("artifacts/")[2]: f for f in json.loads(manifest)}
        listed = stack.ask(connection, "GET", f"/training/jobs/{job}/artifacts")
        for file in listed:
            body = urllib.request.urlopen(file["url"], timeout=30).read()
            promised = files[file["path"]]["sha256"]
            if hashlib.sha256(body).hexdigest() != promised:
                faults.append(f"job {job}: {file['path']} has another digest")
            count += 1
        if not listed:
            faults.append(f"job {job} succeeded without artifacts")
    return count, faults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bin_dir", type=pathlib.Path)
    parser.add_argument("examples", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--live", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "target/soak")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/benchmarks/soak.md")
    options = parser.parse_args()
    data = options.data.resolve()
    if data.exists():
        sys.exit(f"{data} exists; remove it, or give another --data")
    ledgers = data.with_name(data.name + "-ledgers")
    shutil.rmtree(ledgers, ignore_errors=True)
    ledgers.mkdir(parents=True)
    # As many as keep the jobs busy for nine tenths of the time.
    steps = max(10, int(0.9 * options.minutes * 60_000 * options.live / options.jobs / PACE_MS))
    with Stack(options.bin_dir.resolve(), options.examples.resolve(), data, options.live) as stack:
        stack.run("models", "import", str(ROOT / "assets/hone-tiny"), "--name", "hone-tiny")
        stack.run("datasets", "upload", str(ROOT / "assets/demo/train.jsonl"), "--name", "rows")
        connection = stack.connect()
        for number in range(options.jobs):
            script = [{"op": "ledger", "file": str(ledgers / f"{number}")}, {"op": "started"},
                      {"op": "paced", "from": 1, "to": steps, "ms": PACE_MS}, {"op": "finish", "steps": steps}]  # fmt: skip
            config = {"model": "hone-tiny", "dataset": "rows", "name": json.dumps({"*": script}, separators=(",", ":"))}
            stack.ask(connection, "POST", "/training/jobs", {"config": config, "max_attempts": 10})
        progress(f"{options.jobs} jobs, {options.live} at once")
        kills = chaos(stack, options.minutes, random.Random(options.seed))
        deadline = time.monotonic() + 900
        while not set(now := states(stack)) <= TERMINAL:
            if time.monotonic() > deadline:
                sys.exit(f"jobs do not end: {now}")
            progress(f"waiting for the rest: {now}")
            time.sleep(10)
        total, acknowledged, faults = judge(stack, ledgers)
        files, missing = artifacts(stack)
        attempts = int(stack.sql("SELECT count(*) FROM job_attempts"))
        faults += missing
    text = (
        f"{datetime.date.today()}, seed {options.seed}, {options.minutes:g} minutes: {options.jobs} jobs, {options.live} at once; killed: backend "
        f"{kills['backend']} times, storage gateway with its S3 server {kills['gateway']}, Postgres {kills['database']}. All jobs ended "
        f"({', '.join(f'{count} {state}' for state, count in sorted(now.items()))}) in {attempts} attempts. {acknowledged:,} events were "
        f"acknowledged, {total:,} stored; {files} artifacts fetched and compared. **{len(faults)} faults.**"
    )
    print(text)
    if faults:
        sys.exit("\n".join(faults[:20]))
    if options.write:
        path = ROOT / "docs/benchmarks/soak.md"
        before = path.read_text().split("<!-- figures -->")[0]
        path.write_text(f"{before}<!-- figures -->\n\n{text}\n")
    shutil.rmtree(data)


if __name__ == "__main__":
    main()
