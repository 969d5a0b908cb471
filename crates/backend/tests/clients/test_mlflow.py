"""A real MLflow server receives what jobs report, point for point; killing it in mid-run changes nothing for the job.

scripts/test-mlflow.sh starts Hone with MLFLOW_TRACKING_URI and says where things are: HONE_URL, HONE_API_KEY,
HONE_DATA_DIR, MLFLOW (the program), MLFLOW_DIR (where the server keeps its database) and MLFLOW_PORT.
"""

import datetime
import json
import os
import signal
import subprocess
import time
import unittest
import urllib.error
import urllib.parse
import urllib.request

URL = os.environ["HONE_URL"]
KEY = os.environ["HONE_API_KEY"]
DIR = os.environ["MLFLOW_DIR"]
PORT = int(os.environ["MLFLOW_PORT"])
TRACKING = f"http://127.0.0.1:{PORT}"
EXPERIMENT = os.environ["MLFLOW_EXPERIMENT_NAME"]
PATIENCE = 120


def call(url, body=None, headers=None, method=None):
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    with urllib.request.urlopen(request, timeout=30) as reply:
        return json.loads(reply.read() or b"null")


def hone(path, body=None, **options):
    return call(URL + path, body, {"Authorization": f"Bearer {KEY}", **options.pop("headers", {})}, **options)


def mlflow(path, body=None):
    return call(f"{TRACKING}/api/2.0/mlflow/{path}", body)


def until(what, look, every=0.2):
    deadline = time.monotonic() + PATIENCE
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what}"
        time.sleep(every)


class Server:
    """`mlflow server` with its default kind of store, SQLite."""

    def __init__(self):
        self.start()

    def start(self):
        command = [os.environ["MLFLOW"], "server", "--backend-store-uri", f"sqlite:///{DIR}/mlflow.db"]
        command += ["--host", "127.0.0.1", "--port", str(PORT), "--workers", "1"]
        # A group of its own, so that kill -9 reaches its workers too.
        log = open(f"{DIR}/mlflow.log", "ab")
        quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        self.process = subprocess.Popen(
            command, cwd=DIR, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, env=quiet
        )
        log.close()

        def healthy():
            assert self.process.poll() is None, "mlflow server ended"
            try:
                return urllib.request.urlopen(f"{TRACKING}/health", timeout=5).status == 200
            except OSError:
                return False

        until("mlflow server", healthy)

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def dataset(name):
    def row(i):
        question = {"role": "user", "content": f"What follows word {i}?"}
        return {"messages": [question, {"role": "assistant", "content": f"Word {i + 1} follows."}]}

    rows = "".join(json.dumps(row(i)) + "\n" for i in range(200)).encode()
    form = (
        f'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\n{name}\r\n'
        f'--x\r\nContent-Disposition: form-data; name="file"; filename="rows.jsonl"\r\n\r\n'
    ).encode() + rows + b"\r\n--x--\r\n"
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "multipart/form-data; boundary=x"}
    return call(f"{URL}/datasets/upload", form, headers)


def train(name, steps, **training):
    training = {"max_steps": steps, "per_device_train_batch_size": 1, "eval_steps": 10, "save_steps": 0, **training}
    config = {"name": name, "model": "hone-tiny", "dataset": "words", "lora": {"r": 4}, "training": training}
    return hone("/training/jobs", {"config": config})["id"]


def over(job):
    state = hone(f"/training/jobs/{job}")
    return state if state["state"] in ("succeeded", "failed", "cancelled") else None


def points(job):
    """{name: [(step, milliseconds, value)]} of all attempts, as Hone has them."""
    found, after = {}, 0
    while True:
        page = hone(f"/training/jobs/{job}/events?after={after}&limit=1000")["items"]
        if not page:
            return {name: sorted(values) for name, values in found.items()}
        after = page[-1]["id"]
        for event in (message["event"] for message in page if message["stream"] == "event"):
            if event["type"] == "metrics":
                for name, value in event["values"].items():
                    found.setdefault(name, []).append((event["step"], milliseconds(event["at"]), value))


def milliseconds(text):
    at = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return (at - epoch) // datetime.timedelta(milliseconds=1)


def run_of(job):
    try:
        found = mlflow(f"experiments/get-by-name?experiment_name={urllib.parse.quote(EXPERIMENT)}")
    except urllib.error.HTTPError as error:
        assert error.code == 404, error
        return None
    body = {"experiment_ids": [found["experiment"]["experiment_id"]], "filter": f"tags.\"hone.job_id\" = '{job}'"}
    runs = mlflow("runs/search", body).get("runs", [])
    assert len(runs) <= 1, f"{len(runs)} runs of one job"
    return runs[0] if runs else None


def exported(job, names):
    run = run_of(job)["info"]["run_id"]
    found = {}
    for name in names:
        values, token = [], ""
        while True:
            query = urllib.parse.urlencode({"run_id": run, "metric_key": name, "max_results": 1000, "page_token": token})
            page = mlflow(f"metrics/get-history?{query}")
            values += [(int(m.get("step", 0)), int(m["timestamp"]), m["value"]) for m in page.get("metrics", [])]
            token = page.get("next_page_token")
            if not token:
                break
        found[name] = sorted(values)
    return found


def ended(job, status):
    run = run_of(job)
    return run if run and run["info"]["status"] == status else None


class Export(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.addClassCleanup(cls.server.kill)
        dataset("words")

    def assert_same(self, job, least):
        ours = points(job)
        theirs = exported(job, ours)
        self.assertEqual(ours, theirs)
        self.assertGreaterEqual(sum(map(len, ours.values())), least)
        self.assertTrue({"train_loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second"} <= set(ours))
        curve = {p["step"]: p["values"] for p in hone(f"/training/jobs/{job}/metrics?limit=10000")["items"]}
        newest = {step: value for step, _, value in theirs["train_loss"]}
        self.assertEqual(newest, {step: v["train_loss"] for step, v in curve.items() if "train_loss" in v})

    def test_a_run_equals_its_job(self):
        job = train("plain run", 20)
        until("the run", lambda: run_of(job))
        view = until("the job", lambda: over(job))
        self.assertEqual(view["state"], "succeeded", view)
        run = until("the end of the run", lambda: ended(job, "FINISHED"))
        self.assert_same(job, 100)
        self.assertEqual(run["info"]["run_name"], "plain run")
        self.assertGreater(run["info"]["end_time"], run["info"]["start_time"])
        params = {p["key"]: p["value"] for p in run["data"]["params"]}
        self.assertEqual((params["lora.r"], params["training.max_steps"], params["method"]), ("4", "20", "sft"))
        self.assertEqual(float(params["training.learning_rate"]), view["config"]["training"]["learning_rate"])
        tags = {t["key"]: t["value"] for t in run["data"]["tags"]}
        data = hone("/datasets/words")
        self.assertEqual(tags["hone.dataset_sha256"], data["files"][0]["sha256"])
        self.assertEqual((tags["hone.base_model"], tags["hone.base_revision"]), ("hone-tiny", view["model_revision"]))
        artifact = hone(f"/api/artifacts?job_id={job}")["items"][0]
        self.assertEqual(tags["hone.artifact_id"], artifact["id"])
        self.assertTrue(tags["hone.artifact_path"].endswith(f"{job}/attempt-1/artifacts/"), tags)
        self.assertEqual((tags["mlflow.user"], tags["hone.state"]), ("local", "succeeded"))

    def test_a_server_killed_in_mid_run_changes_nothing_and_gets_every_point_later(self):
        # Long enough to be still training when the server dies.
        job = train("outage", 1200)
        until("points in MLflow", lambda: run_of(job) and exported(job, ["train_loss"])["train_loss"])
        self.server.kill()
        self.assertEqual(hone(f"/training/jobs/{job}")["state"], "running", "the server died too late to tell")
        step = hone(f"/training/jobs/{job}")["progress"]["step"]
        until("steps without MLflow", lambda: hone(f"/training/jobs/{job}")["progress"]["step"] > step + 5)
        view = until("the job", lambda: over(job))
        self.assertEqual((view["state"], view["attempt"]), ("succeeded", 1), view)
        self.server.start()
        until("the end of the run", lambda: ended(job, "FINISHED"))
        self.assert_same(job, 12000)
        with open(os.environ["HONE_DATA_DIR"] + "/logs/backend.log", encoding="utf-8") as log:
            text = log.read()
        self.assertEqual(text.count("cannot export to MLflow"), 1, "one warning per outage")
        self.assertEqual(text.count("MLflow takes points again"), 1)

    def test_a_backend_killed_in_mid_run_doubles_nothing(self):
        job = train("restart", 600)
        until("points in MLflow", lambda: run_of(job) and exported(job, ["train_loss"])["train_loss"])
        before = connection_pid()
        os.kill(before, signal.SIGKILL)
        until("another backend", lambda: connection_pid() not in (None, before))
        view = until("the job", lambda: alive() and over(job))
        self.assertEqual(view["state"], "succeeded", view)
        until("the end of the run", lambda: ended(job, "FINISHED"))
        self.assert_same(job, 6000)

    def test_a_cancelled_job_is_a_killed_run_and_an_equal_batch_is_stored_once(self):
        job = train("cancelled", 5000)
        run = until("points in MLflow", lambda: run_of(job) and exported(job, ["train_loss"])["train_loss"] and run_of(job))
        hone(f"/training/jobs/{job}/cancel", method="POST")
        until("the end", lambda: over(job))
        until("the end of the run", lambda: ended(job, "KILLED"))
        self.assert_same(job, 10)
        # What the exporter rests on: a batch whose reply was lost may be sent again.
        loss = exported(job, ["train_loss"])["train_loss"]
        again = [{"key": "train_loss", "step": s, "timestamp": t, "value": v} for s, t, v in loss]
        mlflow("runs/log-batch", {"run_id": run["info"]["run_id"], "metrics": again})
        self.assertEqual(exported(job, ["train_loss"])["train_loss"], loss)


def connection_pid():
    try:
        with open(os.environ["HONE_DATA_DIR"] + "/run/backend.ready", encoding="utf-8") as file:
            return json.load(file)["pid"]
    except (OSError, ValueError):
        return None


def alive():
    try:
        return urllib.request.urlopen(f"{URL}/ready", timeout=5).status == 200
    except OSError:
        return False


if __name__ == "__main__":
    unittest.main()
