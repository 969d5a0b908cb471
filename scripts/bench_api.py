#!/usr/bin/env python3
"""Measures the backend's API over a large database: lists, filters, curves, and what trainers report.

  scripts/bench_api.py BIN_DIR [--data DIR] [--jobs 1000000] [--points 50000000] [--requests 1000] [--write]

Starts `hone up` (Postgres with fsync, storage gateway, backend) in DIR, which is kept: filling it takes minutes, asking it
again seconds. Fills it by SQL as the database's owner: 1,000 jobs have 20,000 points (4 metrics x 5,000 steps), 20 of them
200,000 points (4 x 50,000), the rest is spread over all others; all belong to one user. Then, from this process over
keep-alive connections:

  reads    one client; every request timed from sending it to having read its last byte
  ingest   clients that send batches of events as trainers do, with job tokens; points/s from first request to last reply

Prints a table; --write also puts it into docs/benchmarks/api.md. Standard library only.
"""

import argparse
import datetime
import http.client
import json
import os
import pathlib
import platform
import random
import subprocess
import sys
import threading
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent
METRICS = ["train_loss", "learning_rate", "grad_norm", "tokens_per_second"]
LARGE, LARGE_STEPS = 1000, 5_000
HUGE, HUGE_STEPS = 20, 50_000
STATES = "ARRAY['succeeded','succeeded','succeeded','succeeded','succeeded','succeeded','failed','failed','cancelled']"


def progress(text):
    print(f"  {text}", file=sys.stderr, flush=True)


class Hone:
    def __init__(self, bin_dir, data):
        self.program, self.data = bin_dir / "hone", data
        self.env = os.environ | {
            "HONE_DATA_DIR": str(data), "RATE_LIMIT_PER_MINUTE": "0", "AUTH_FAILURES_PER_MINUTE": "0", "MAX_UNFINISHED_JOBS": "1000", "HEARTBEAT_SECONDS": "5",
        }  # fmt: skip

    def __enter__(self):
        self.run("up", "--port", "0", "--detach")
        connection = json.loads((self.data / "connection.json").read_text())
        self.url, self.key = urllib.parse.urlsplit(connection["url"]), connection["api_key"]
        return self

    def __exit__(self, *_):
        self.run("down")

    def run(self, *arguments):
        done = subprocess.run([self.program, *arguments], env=self.env, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            sys.exit(f"hone {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def connect(self):
        return http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=120)

    def ask(self, connection, method, path, body=None, token=None):
        headers = {"Authorization": f"Bearer {token or self.key}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, body, headers)
        reply = connection.getresponse()
        content = reply.read()
        if reply.status >= 300:
            sys.exit(f"{method} {path}: {reply.status} {content[:500]}")
        return json.loads(content)

    def sql(self, text):
        environment = os.environ | {
            "PGHOST": str(self.data / "sock"), "PGDATABASE": "hone", "PGUSER": "hone", "PGOPTIONS": "-c client_min_messages=warning",
            "PGPASSWORD": (self.data / "secrets/postgres-password").read_text().strip(),
        }  # fmt: skip
        command = ["psql", "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-c", text]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"psql: {done.stderr}")
        return done.stdout.strip()


def external_job(hone, connection, name):
    config = {"model": "hone-tiny", "dataset": "rows", "name": name}
    return hone.ask(connection, "POST", "/training/jobs", {"trainer": "external", "config": config})


def fill(hone, jobs, points):
    """Makes the rows, once. The owner's session skips triggers and foreign keys; what is stored is what they allow."""
    done = hone.sql("SELECT obj_description('training_jobs'::regclass)")
    if done == f"filled {jobs} {points}":
        return
    if done:
        sys.exit(f"the database in {hone.data} is filled otherwise ({done}); give another --data, or remove it")
    hone.run("models", "import", str(ROOT / "assets/hone-tiny"), "--name", "hone-tiny")
    hone.run("datasets", "upload", str(ROOT / "assets/demo/train.jsonl"), "--name", "rows")
    template = external_job(hone, hone.connect(), "template")["id"]
    hone.ask(hone.connect(), "POST", f"/training/jobs/{template}/cancel")
    started = time.monotonic()
    # Ids of version 7 of this month, as the partition of the points wants them.
    hone.sql(f"""
        SET session_replication_role = replica;
        WITH span AS (SELECT date_trunc('month', now()) AS first, now() - date_trunc('month', now()) AS length),
        made AS (
            SELECT i, first + length * (i / {jobs}.0) AS at FROM generate_series(0, {jobs} - 1) i, span
        )
        INSERT INTO training_jobs
        SELECT job.* FROM made, training_jobs t, LATERAL jsonb_populate_record(t, jsonb_build_object(
            'id', (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || lpad(to_hex(i & 4095), 3, '0')
                || '8' || substr(md5(i::text), 1, 15))::uuid,
            'name', 'job-' || i, 'state', ({STATES})[1 + i % 9], 'created_at', at, 'started_at', at,
            'finished_at', at + interval '1 hour', 'updated_at', at)) job
        WHERE t.id = '{template}';
        UPDATE training_jobs SET state = 'running' WHERE name IN ('job-77', 'job-{jobs // 2}');
    """)
    hone.sql("VACUUM ANALYZE training_jobs")
    progress(f"{jobs:,} jobs in {time.monotonic() - started:.0f} s")
    started = time.monotonic()
    part = hone.sql("SELECT to_char(now() AT TIME ZONE 'UTC', '\"metrics_points_\"YYYY\"_\"MM')")
    bounds = hone.sql(f"SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = '{part}'")
    names = "ARRAY[" + ", ".join(f"'{n}'" for n in METRICS) + "]"
    hone.sql(f"ALTER TABLE metrics_points DETACH PARTITION {part}")
    indexes = hone.sql(f"SELECT indexrelid::regclass FROM pg_index WHERE indrelid = '{part}'::regclass AND NOT indisprimary")
    hone.sql(f"ALTER TABLE {part} DROP CONSTRAINT {part}_pkey")
    for index in indexes.split():
        hone.sql(f"DROP INDEX {index}")

    def insert(low, high, steps):
        # As fifty jobs that train at the same time leave them: step after step of all.
        hone.sql(f"""
            SET session_replication_role = replica;
            INSERT INTO {part} (job_id, attempt, step, name, user_id, epoch, value, at, seq)
            SELECT id, 1, step, name, user_id, step / 1000.0, 5 * exp(-step / 2000.0) + random() / 10, now(), step
            FROM (SELECT id, user_id FROM training_jobs WHERE name IN (SELECT 'job-' || i FROM generate_series({low}, {high} - 1) i)) j,
                generate_series(1, {steps}) step, unnest({names}) name ORDER BY step, id;
        """)

    large = min(LARGE, jobs // 4)
    for low in range(0, HUGE, 5):
        insert(low, low + 5, HUGE_STEPS)
    for low in range(HUGE, large, 50):
        insert(low, min(low + 50, large), LARGE_STEPS)
        if low % 200 == HUGE:
            progress(f"points of {low} large jobs after {time.monotonic() - started:.0f} s")
    left = points - 4 * (HUGE * HUGE_STEPS + (large - HUGE) * LARGE_STEPS)
    steps = max(1, -(-left // (4 * (jobs - large))))
    for low in range(large, jobs, 100_000):
        insert(low, min(low + 100_000, jobs), steps)
        progress(f"points of {low:,} small jobs after {time.monotonic() - started:.0f} s")
    hone.sql(f"SET maintenance_work_mem = '1GB'; ALTER TABLE {part} ADD PRIMARY KEY (job_id, attempt, step, name)")
    hone.sql(f"SET maintenance_work_mem = '1GB'; CREATE INDEX ON {part} (job_id, step)")
    hone.sql(f"ALTER TABLE metrics_points ATTACH PARTITION {part} {bounds}")
    hone.sql(f"VACUUM ANALYZE {part}")
    progress(f"points and their indexes in {time.monotonic() - started:.0f} s")
    hone.sql(f"COMMENT ON TABLE training_jobs IS 'filled {jobs} {points}'")


def quantiles(times):
    times = sorted(times)
    at = lambda q: times[min(len(times) - 1, int(q * len(times)))]
    return [at(0.5) * 1000, at(0.99) * 1000, times[-1] * 1000]


def reads(hone, jobs, requests):
    rng = random.Random(7)
    connection = hone.connect()
    first = lambda name: hone.sql(f"SELECT id FROM training_jobs WHERE name = 'job-{name}'")
    large = [first(i) for i in range(HUGE, HUGE + 40)]
    huge = [first(i) for i in range(5)]
    small = [first(rng.randrange(LARGE, jobs)) for _ in range(40)]
    deep = hone.sql(
        "SELECT (extract(epoch FROM created_at) * 1000000)::bigint || '_' || id FROM training_jobs "
        f"WHERE name IN ({', '.join(repr(f'job-{rng.randrange(jobs)}') for _ in range(200))})"
    ).split()
    page = "/training/jobs?limit=50"
    cases = [
        ("list, first page", 50, lambda: page),
        ("list, a page anywhere", 50, lambda: f"{page}&cursor={rng.choice(deep)}"),
        ("filter: failed (2 in 9)", 50, lambda: f"{page}&state=failed&cursor={rng.choice(deep)}"),
        ("filter: running (2 jobs)", 50, lambda: f"{page}&state=running"),
        ("filter: cancelling (none)", 50, lambda: f"{page}&state=cancelling"),
        ("one job", 50, lambda: f"/training/jobs/{rng.choice(small)}"),
        ("curve of a small job, 2,000 points", 100, lambda: f"/training/jobs/{rng.choice(small)}/metrics?points=2000"),
        ("curve of 20,000 points, 2,000 points", 100, lambda: f"/training/jobs/{rng.choice(large)}/metrics?points=2000"),
        ("curve of 200,000 points, 2,000 points", None, lambda: f"/training/jobs/{rng.choice(huge)}/metrics?points=2000"),
    ]
    rows = []
    for name, bar, path in cases:
        times = []
        count = requests if bar else requests // 10
        for i in range(count + 10):
            target = path()
            started = time.monotonic()
            hone.ask(connection, "GET", target)
            if i >= 10:
                times.append(time.monotonic() - started)
        rows.append((name, count, *quantiles(times), bar))
        progress(f"{name}: p50 {rows[-1][2]:.1f} ms, p99 {rows[-1][3]:.1f} ms")
    return rows


def ingest(hone, clients, seconds, events):
    """Batches of `events` steps with twelve values each, from `clients` jobs at once."""
    names = [f"metric_{i}" for i in range(12)]
    sent, errors, lock, stop = [0], [], threading.Lock(), time.monotonic() + seconds
    jobs = [external_job(hone, hone.connect(), f"ingest-{i}") for i in range(clients)]

    def client(job, number):
        try:
            connection = hone.connect()
            token, path = job["external"]["token"], urllib.parse.urlsplit(job["external"]["callback_url"]).path
            instance = f"00000000-0000-4000-8000-{number:012}"
            at, seq = datetime.datetime.now(datetime.timezone.utc).isoformat(), 0
            while time.monotonic() < stop:
                batch = [
                    {"seq": seq + i, "at": at, "type": "metrics", "step": seq + i, "epoch": 0.5,
                     "values": {name: (seq + i) * 0.5 for name in names}}
                    for i in range(1, events + 1)
                ]  # fmt: skip
                seq += events
                body = {"job_id": job["id"], "attempt": 1, "instance_id": instance, "events": batch}
                reply = hone.ask(connection, "POST", path, body, token)
                assert reply["acked_seq"] == seq, reply
                with lock:
                    sent[0] += events * len(names)
        except (Exception, SystemExit) as error:
            errors.append(error)

    threads = [threading.Thread(target=client, args=(job, i)) for i, job in enumerate(jobs)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - started
    if errors:
        sys.exit(f"ingest: {errors[0]!r}")
    ids = ", ".join(f"'{job['id']}'" for job in jobs)
    stored = int(hone.sql(f"SELECT count(*) FROM metrics_points WHERE job_id IN ({ids})"))
    if stored != sent[0]:
        sys.exit(f"{sent[0]} points were acknowledged and {stored} are stored")
    for job in jobs:
        hone.ask(hone.connect(), "POST", f"/training/jobs/{job['id']}/cancel")
    return sent[0], elapsed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bin_dir", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, default=ROOT / "target/bench-api")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--points", type=int, default=50_000_000)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--events", type=int, default=200, help="steps in a batch of the ingest clients")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--write", action="store_true", help="put the table into docs/benchmarks/api.md")
    options = parser.parse_args()
    with Hone(options.bin_dir.resolve(), options.data.resolve()) as hone:
        fill(hone, options.jobs, options.points)
        held = hone.sql("SELECT (SELECT reltuples::bigint FROM pg_class WHERE relname = 'training_jobs') || ' ' || "
                        "(SELECT sum(reltuples)::bigint FROM pg_class WHERE relname ~ '^metrics_points_[0-9o]' AND relkind = 'r')")  # fmt: skip
        fsync = hone.sql("SHOW fsync")
        version = hone.sql("SHOW server_version").split()[0]
        rows = reads(hone, options.jobs, options.requests)
        sent, elapsed = ingest(hone, options.clients, options.seconds, options.events)
    table = ["| request | times | p50 ms | p99 ms | largest ms | bar: p99 |", "|---|---|---|---|---|---|"]
    for name, count, p50, p99, largest, bar in rows:
        table.append(f"| {name} | {count} | {p50:.1f} | {p99:.1f} | {largest:.1f} | {f'{bar} ms' if bar else '–'} |")
    rate = sent / elapsed
    jobs, points = held.split()
    text = "\n".join([
        *table, "",
        f"Ingest: {options.clients} clients with batches of {options.events} steps × 12 values: {sent:,} points acknowledged and "
        f"stored in {elapsed:.1f} s, **{rate:,.0f} points/s** (bar: 50,000).", "",
        f"{datetime.date.today()}, {os.cpu_count()} processors ({platform.machine()}), Postgres {version} with fsync {fsync}, "
        f"{int(jobs):,} jobs and {int(points):,} points (estimates of Postgres); clients on the same machine.",
    ])  # fmt: skip
    print(text)
    if options.write:
        path = ROOT / "docs/benchmarks/api.md"
        before = path.read_text().split("<!-- table -->")[0]
        path.write_text(f"{before}<!-- table -->\n\n{text}\n")


if __name__ == "__main__":
    main()
