#!/usr/bin/env python3
"""Kills backends in turn while jobs train, and counts: test_rolling.py JOBS CONTAINER CONTAINER

Called by test-rolling.sh, with HONE_API_KEY and DATABASE_URL (of the superuser). Asks every backend in turn, as a service
in front of them would, and repeats at the other one what got no answer or 5xx; each job has a follower that reads its live
stream and goes on after its last id. Standard library and psql only.
"""

import http.client
import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid

KEY = os.environ["HONE_API_KEY"]
STEPS = 150
ROUNDS = 2
TERMINAL = {"succeeded", "failed", "cancelled"}
CONFIG = {
    "model": "hone-tiny",
    "dataset": "demo",
    "training": {"max_steps": STEPS, "max_seq_length": 128, "eval_steps": 1000, "val_set_size": 0.01},
}


def docker(*arguments):
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def address(container):
    network = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return docker("inspect", "--format", network, container)


class Failed(Exception):
    """A request that got no answer, or a wrong one."""


class Backends:
    def __init__(self, containers):
        self.containers = containers
        self.hosts = {c: address(c) for c in containers}
        self.turn = 0
        self.repeated = self.requests = 0
        self.lock = threading.Lock()

    def next(self):
        with self.lock:
            self.turn += 1
            return self.hosts[self.containers[self.turn % len(self.containers)]]

    def request(self, method, path, body=None, headers=None):
        """The reply's JSON. The same request, with the same idempotency key, is repeated for at most 5 seconds."""
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"} | (headers or {})
        data = None if body is None else json.dumps(body).encode()
        deadline = time.monotonic() + 5
        with self.lock:
            self.requests += 1
        while True:
            try:
                url = f"http://{self.next()}:8700{path}"
                request = urllib.request.Request(url, data=data, headers=headers, method=method)
                with urllib.request.urlopen(request, timeout=3) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise Failed(f"{method} {path}: {error.code} {error.read().decode()[:300]}") from error
                why = f"{error.code} {error.read().decode()[:300]}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                why = repr(error)
            if time.monotonic() > deadline:
                raise Failed(f"{method} {path} failed although it was repeated for 5 s: {why}")
            with self.lock:
                self.repeated += 1
            time.sleep(0.1)


class User(threading.Thread):
    """Reads, and creates again what is there (the same key, so the same job), until told to stop."""

    def __init__(self, backends, created):
        super().__init__(daemon=True)
        self.backends, self.created = backends, created
        self.stop, self.failures = False, []

    def run(self):
        while not self.stop:
            for key, job in self.created.items():
                if self.stop:
                    break
                try:
                    self.backends.request("GET", f"/training/jobs/{job}")
                    again = self.backends.request("POST", "/training/jobs", {"config": CONFIG}, {"idempotency-key": key})
                    if again["id"] != job:
                        self.failures.append(f"the key of job {job} made job {again['id']}")
                except Failed as failed:
                    self.failures.append(str(failed))
                time.sleep(0.05)


class Follower(threading.Thread):
    """Reads a job's live stream to its end, over as many connections as it takes."""

    def __init__(self, backends, job):
        super().__init__(daemon=True)
        self.backends, self.job = backends, job
        self.ids, self.connections, self.done = [], 0, False

    def run(self):
        while not self.done:
            try:
                self.read()
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.1)

    def read(self):
        connection = http.client.HTTPConnection(self.backends.next(), 8700, timeout=20)
        headers = {"authorization": f"Bearer {KEY}", "accept": "text/event-stream"}
        if self.ids:
            headers["last-event-id"] = str(self.ids[-1])
        connection.request("GET", f"/training/jobs/{self.job}/events", headers=headers)
        reply = connection.getresponse()
        if reply.status != 200:
            return
        self.connections += 1
        for line in reply:
            if line.startswith(b"id:"):
                self.ids.append(int(line[3:]))
            # Only a whole stream says so; one that is cut just ends.
            self.done = self.done or line.startswith(b"event: end")


def ready(container):
    try:
        with urllib.request.urlopen(f"http://{address(container)}:8700/ready", timeout=2) as reply:
            return reply.status == 200
    except OSError:
        return False


def restart(backends, container):
    docker("kill", container)
    time.sleep(3)
    docker("start", container)
    deadline = time.monotonic() + 30
    while not ready(container):
        if time.monotonic() > deadline:
            raise SystemExit(f"{container} was not ready 30 s after its start")
        time.sleep(0.1)
    backends.hosts[container] = address(container)


def sql(query):
    command = ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", os.environ["DATABASE_URL"], "--command", query]
    rows = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")
    return [row.split("|") for row in rows if row]


def expect(what, got, wanted):
    print(f"{what}: {got}")
    if got != wanted:
        raise SystemExit(f"{what}: {got} instead of {wanted}")


def main():
    count, containers = int(sys.argv[1]), sys.argv[2:]
    backends = Backends(containers)
    created = {}
    for _ in range(count):
        key = str(uuid.uuid4())
        created[key] = backends.request("POST", "/training/jobs", {"config": CONFIG}, {"idempotency-key": key})["id"]
    jobs = list(created.values())
    followers = [Follower(backends, job) for job in jobs]
    for follower in followers:
        follower.start()

    def states():
        return [backends.request("GET", f"/training/jobs/{job}")["state"] for job in jobs]

    deadline = time.monotonic() + 120
    while states().count("running") < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"not all jobs run: {states()}")
        time.sleep(1)
    print(f"{count} jobs run")

    users = [User(backends, created) for _ in range(4)]
    for user in users:
        user.start()
    unfinished = 0
    for _ in range(ROUNDS):
        for container in containers:
            unfinished = sum(s not in TERMINAL for s in states())
            print(f"killing {container}; {unfinished} jobs are not finished")
            restart(backends, container)
    if unfinished < count:
        raise SystemExit(f"only {unfinished} jobs were still training at the last kill; give them more steps")
    deadline = time.monotonic() + 400
    while not all(s in TERMINAL for s in states()):
        if time.monotonic() > deadline:
            raise SystemExit(f"not all jobs ended: {states()}")
        time.sleep(2)
    for user in users:
        user.stop = True
        user.join(30)
    for follower in followers:
        follower.join(30)

    expect("jobs that succeeded", states().count("succeeded"), count)
    expect("attempts", int(sql("SELECT count(*) FROM job_attempts")[0][0]), count)
    events = sql("SELECT job_id, attempt, count(seq), max(seq), min(seq), count(*) FROM job_events GROUP BY 1, 2")
    gaps = [row for row in events if row[4] not in ("1", "") or row[2] != (row[3] or "0")]
    expect("attempts whose events have gaps", gaps, [])
    steps = sql(f"SELECT count(*) FROM (SELECT job_id FROM metrics_points WHERE name = 'train_loss' GROUP BY job_id "
                f"HAVING count(*) = {STEPS} AND max(step) = {STEPS} AND count(DISTINCT step) = {STEPS}) AS whole")
    expect(f"jobs with every one of {STEPS} steps, once", int(steps[0][0]), count)
    stored = {}
    for row in sql("SELECT job_id, id FROM job_events ORDER BY id"):
        stored.setdefault(row[0], []).append(int(row[1]))
    wrong = [f.job for f in followers if not f.done or f.ids != stored[f.job]]
    expect("live streams that missed or repeated a message", wrong, [])
    connections = sum(f.connections for f in followers)
    print(f"live streams: {sum(len(f.ids) for f in followers)} messages over {connections} connections")
    print(f"requests: {backends.requests}, repeated {backends.repeated} times")
    expect("requests that failed although they were repeated", [f for u in users for f in u.failures], [])


main()
