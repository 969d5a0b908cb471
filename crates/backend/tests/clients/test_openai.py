"""OpenAI's Python client, unmodified, against a running Hone: only the base URL and the key differ.

scripts/test-clients.sh starts the Hone; the environment says where it is: HONE_URL, HONE_API_KEY, and HONE_DATA_DIR
for the test that takes its storage gateway away.
"""

import asyncio
import csv
import hashlib
import http.client
import http.server
import io
import json
import os
import pathlib
import signal
import tempfile
import threading
import time
import unittest
import urllib.parse

import openai

URL = os.environ["HONE_URL"]
KEY = os.environ["HONE_API_KEY"]
PATIENCE = 120


def client(base_url=URL + "/v1", key=KEY, **options):
    """Replies must be what the client's types say, to the letter."""
    options = {"max_retries": 0, "timeout": 60, "_strict_response_validation": True, **options}
    return openai.OpenAI(base_url=base_url, api_key=key, **options)


def chat(rows):
    def row(i):
        question = {"role": "user", "content": f"What follows word {i}?"}
        return {"messages": [question, {"role": "assistant", "content": f"Word {i + 1} follows."}]}

    return "".join(json.dumps(row(i)) + "\n" for i in range(rows)).encode()


def pairs(rows):
    def row(i):
        say = lambda text: [{"role": "assistant", "content": text}]
        question = {"messages": [{"role": "user", "content": f"What follows word {i}?"}]}
        good, bad = say(f"Word {i + 1} follows."), say("I do not know.")
        return {"input": question, "preferred_output": good, "non_preferred_output": bad}

    return "".join(json.dumps(row(i)) + "\n" for i in range(rows)).encode()


def until(what, look, every=0.2):
    deadline = time.monotonic() + PATIENCE
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {PATIENCE} s for {what}"
        time.sleep(every)


def supervised(**hyperparameters):
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}


class Case(unittest.TestCase):
    def setUp(self):
        self.api = client()
        # The client's list of states lacks `paused`.
        self.lenient = client(_strict_response_validation=False)

    def upload(self, content, name="rows.jsonl"):
        file = self.api.files.create(file=(name, content), purpose="fine-tune")
        self.addCleanup(self.forget, file.id)
        return self.api.files.wait_for_processing(file.id, poll_interval=0.1)

    def forget(self, file):
        try:
            self.api.files.delete(file)
        except openai.NotFoundError:
            pass

    def train(self, **options):
        job = self.api.fine_tuning.jobs.create(model="hone-tiny", **options)
        self.addCleanup(self.end, job.id)
        return job

    def end(self, job):
        try:
            self.lenient.fine_tuning.jobs.cancel(job)
        except openai.ConflictError:
            pass
        until("the end of a job", lambda: self.lenient.fine_tuning.jobs.retrieve(job).finished_at)

    def status(self, job):
        return self.lenient.fine_tuning.jobs.retrieve(job).status

    def wait_for(self, job, status):
        def look():
            found = self.lenient.fine_tuning.jobs.retrieve(job)
            assert found.status == status or found.status not in ("failed", "cancelled"), found
            return found if found.status == status else None

        return until(f"{job} to be {status}", look)


class Training(Case):
    def test_supervised_from_file_to_model(self):
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "train.jsonl"
            path.write_bytes(chat(64))
            train = self.api.files.create(file=path, purpose="fine-tune")
        self.assertEqual((train.status, train.filename, train.bytes), ("processed", "train.jsonl", len(chat(64))))
        valid = self.upload(chat(8))
        self.assertEqual(self.api.files.content(train.id).content, chat(64))

        job = self.train(
            training_file=train.id,
            validation_file=valid.id,
            suffix="words",
            seed=7,
            metadata={"team": "clients"},
            method=supervised(n_epochs=2, batch_size="auto", learning_rate_multiplier=2.0),
        )
        self.assertIn(job.status, ("queued", "running"))
        hyper = job.method.supervised.hyperparameters
        self.assertEqual((hyper.n_epochs, hyper.batch_size, hyper.learning_rate_multiplier), (2, 4, 2.0))
        self.assertEqual((job.hyperparameters.n_epochs, job.seed, job.metadata), (2, 7, {"team": "clients"}))
        self.assertEqual((job.training_file, job.validation_file), (train.id, valid.id))
        self.assertIsNone(job.fine_tuned_model)

        # As a program follows a job: by the newest events until there is an end.
        def over():
            newest = self.api.fine_tuning.jobs.list_events(job.id, limit=1).data[0]
            assert newest.level != "error", newest
            return newest.message == "The job has successfully completed"

        until("the end of the job", over)
        done = self.api.fine_tuning.jobs.retrieve(job.id)
        self.assertEqual((done.status, done.error), ("succeeded", None))
        self.assertRegex(done.fine_tuned_model, r"^ft:hone-tiny:local:words:[0-9a-f]{12}$")
        self.assertGreater(done.trained_tokens, 0)
        self.assertGreaterEqual(done.finished_at, done.created_at)

        events = list(self.api.fine_tuning.jobs.list_events(job.id, limit=7))
        self.assertEqual(len({event.id for event in events}), len(events))
        steps = [event.data["step"] for event in events if event.type == "metrics" and "train_loss" in event.data]
        self.assertEqual(sorted(steps), list(range(1, 33)))
        messages = [event.message for event in reversed(events)]
        self.assertTrue(messages[0].startswith(f"Created fine-tuning job: {job.id}"), messages)
        for wanted in ("Fine-tuning job started", "Checkpoint created at step 16", "Checkpoint created at step 32"):
            self.assertIn(wanted, messages)
        self.assertTrue(any(message.startswith("Step 1/32: training loss=") for message in messages), messages)

        checkpoints = list(self.api.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
        self.assertEqual([checkpoint.step_number for checkpoint in checkpoints], [32, 16])
        for checkpoint in checkpoints:
            self.assertEqual(checkpoint.metrics.step, checkpoint.step_number)
            self.assertGreater(checkpoint.metrics.train_loss, 0)
            self.assertGreater(checkpoint.metrics.full_valid_loss, 0)
            self.assertTrue(checkpoint.fine_tuned_model_checkpoint.startswith(done.fine_tuned_model + ":ckpt-step-"))

        (result,) = done.result_files
        described = self.api.files.retrieve(result)
        self.assertEqual((described.purpose, described.filename), ("fine-tune-results", "step_metrics.csv"))
        content = self.api.files.content(result)
        self.assertEqual(len(content.content), described.bytes)
        rows = list(csv.DictReader(io.StringIO(content.text)))
        losses = {int(row["step"]): float(row["train_loss"]) for row in rows if row["train_loss"]}
        self.assertEqual(sorted(losses), list(range(1, 33)))
        self.assertLess(losses[32], losses[1])
        validated = [int(row["step"]) for row in rows if row["valid_loss"]]
        self.assertEqual(validated, [0, 16, 32])

        names = [model.id for model in self.api.models.list()]
        self.assertIn("hone-tiny", names)
        self.assertIn(done.fine_tuned_model, names)
        self.assertEqual(self.api.models.retrieve(done.fine_tuned_model).owned_by, "local")
        self.assertTrue(self.api.models.delete(done.fine_tuned_model).deleted)
        with self.assertRaises(openai.NotFoundError):
            self.api.models.retrieve(done.fine_tuned_model)
        self.assertTrue(self.api.files.delete(train.id).deleted)
        with self.assertRaises(openai.NotFoundError):
            self.api.files.retrieve(train.id)

    def test_dpo_while_its_file_is_deleted(self):
        file = self.upload(pairs(16))
        hyperparameters = {"beta": 0.2, "n_epochs": 3, "batch_size": 4}
        job = self.train(
            training_file=file.id, method={"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}
        )
        self.api.files.delete(file.id)
        self.assertEqual((job.method.type, job.method.dpo.hyperparameters.beta), ("dpo", 0.2))
        done = self.wait_for(job.id, "succeeded")
        rows = list(csv.DictReader(io.StringIO(self.api.files.content(done.result_files[0]).text)))
        self.assertEqual([int(row["step"]) for row in rows], list(range(1, 13)))
        self.assertTrue(all(0 <= float(row["train_accuracy"]) <= 1 for row in rows), rows)

    def test_pause_resume_cancel(self):
        file = self.upload(chat(32))
        job = self.train(training_file=file.id, method=supervised(n_epochs=10000))

        def steps():
            events = self.api.fine_tuning.jobs.list_events(job.id, limit=20)
            return max((event.data["step"] for event in events.data if event.type == "metrics"), default=0)

        until("the first steps", lambda: steps() >= 3)
        running = self.api.fine_tuning.jobs.retrieve(job.id)
        self.assertEqual(running.status, "running")
        self.assertGreater(running.estimated_finish, running.created_at)
        self.lenient.fine_tuning.jobs.pause(job.id)
        self.wait_for(job.id, "paused")
        reached = steps()
        self.assertIn(reached, [c.step_number for c in self.api.fine_tuning.jobs.checkpoints.list(job.id)])
        self.assertEqual(self.api.fine_tuning.jobs.resume(job.id).status, "queued")
        until("more steps", lambda: steps() > reached)
        self.assertEqual(self.api.fine_tuning.jobs.cancel(job.id).status, "cancelled")
        until("the end", lambda: self.api.fine_tuning.jobs.retrieve(job.id).finished_at)
        over = self.api.fine_tuning.jobs.retrieve(job.id)
        self.assertEqual((over.status, over.fine_tuned_model, over.result_files), ("cancelled", None, []))
        self.assertGreater(over.trained_tokens, 0)
        with self.assertRaises(openai.ConflictError):
            self.api.fine_tuning.jobs.pause(job.id)

    def test_lists_go_through_all_pages(self):
        file = self.upload(chat(4))
        made = [
            self.train(training_file=file.id, method=supervised(n_epochs=1), metadata={"set": "pages", "n": str(n)}).id
            for n in range(3)
        ]
        for job in made:
            self.wait_for(job, "succeeded")
        listed = [job.id for job in self.api.fine_tuning.jobs.list(limit=2, metadata={"set": "pages"})]
        self.assertEqual(listed, made[::-1])
        listed = [job.id for job in self.api.fine_tuning.jobs.list(metadata={"set": "pages", "n": "1"})]
        self.assertEqual(listed, [made[1]])
        files = [f.id for f in self.api.files.list(limit=1, order="asc", purpose="fine-tune-results")]
        self.assertEqual(files[-3:], sorted(files[-3:], key=files.index))
        self.assertEqual(len(set(files)), len(files))

    def test_upload_in_parts(self):
        content = chat(100)
        upload = self.api.uploads.upload_file_chunked(
            file=content,
            filename="large.jsonl",
            bytes=len(content),
            mime_type="text/jsonl",
            purpose="fine-tune",
            part_size=4000,
            md5=hashlib.md5(content).hexdigest(),
        )
        self.addCleanup(self.forget, upload.file.id)
        self.assertEqual((upload.status, upload.bytes, upload.filename), ("completed", len(content), "large.jsonl"))
        self.assertEqual((upload.file.status, upload.file.bytes), ("processed", len(content)))
        self.assertEqual(self.api.files.content(upload.file.id).content, content)
        job = self.train(training_file=upload.file.id, method=supervised(n_epochs=1))
        self.wait_for(job.id, "succeeded")

    def test_the_client_that_waits_without_blocking(self):
        async def work():
            async with openai.AsyncOpenAI(base_url=URL + "/v1", api_key=KEY) as api:
                file = await api.files.create(file=("rows.jsonl", chat(4)), purpose="fine-tune")
                job = await api.fine_tuning.jobs.create(
                    model="hone-tiny", training_file=file.id, hyperparameters={"n_epochs": 1}
                )
                while job.status not in ("succeeded", "failed"):
                    await asyncio.sleep(0.2)
                    job = await api.fine_tuning.jobs.retrieve(job.id)
                messages = [event.message async for event in api.fine_tuning.jobs.list_events(job.id)]
                await api.files.delete(file.id)
                return job.status, messages[0]

        self.assertEqual(asyncio.run(work()), ("succeeded", "The job has successfully completed"))

    def test_azures_client(self):
        api = openai.AzureOpenAI(azure_endpoint=URL, api_key=KEY, api_version="2024-10-21", max_retries=0)
        self.assertIn("hone-tiny", [model.id for model in api.models.list()])
        api = openai.AzureOpenAI(azure_endpoint=URL, api_key="hone_sk_wrong", api_version="2024-10-21", max_retries=0)
        with self.assertRaises(openai.AuthenticationError):
            api.models.list()


class Errors(Case):
    def refused(self, kind, call, **fields):
        with self.assertRaises(kind) as caught:
            call()
        error = caught.exception
        self.assertEqual({name: getattr(error, name) for name in fields}, fields, error)
        return error

    def test_400(self):
        create = self.api.fine_tuning.jobs.create
        file = self.upload(chat(4))
        bad = self.upload(b'{"messages": [\n')
        self.assertEqual(bad.status, "error")
        self.assertIn("line 1", bad.status_details)
        refused = lambda param, **options: self.refused(
            openai.BadRequestError,
            lambda: create(**{"model": "hone-tiny", "training_file": file.id, **options}),
            param=param,
            type="invalid_request_error",
        )
        refused("model", model="gpt-4o-mini")
        refused("training_file", training_file="file-abc")
        error = refused("training_file", training_file=bad.id)
        self.assertEqual(error.code, "invalid_training_file")
        refused("method", method={"type": "dpo", "dpo": {}})
        refused("method.type", method={"type": "reinforcement", "reinforcement": {"grader": {}}})
        refused("integrations", integrations=[{"type": "wandb", "wandb": {"project": "p"}}])
        refused("suffix", suffix="x" * 65)
        refused("hyperparameters.n_epochs", hyperparameters={"n_epochs": 0})
        self.refused(
            openai.BadRequestError,
            lambda: self.api.files.create(file=("a.jsonl", chat(1)), purpose="assistants"),
            param="purpose",
        )

    def test_401(self):
        wrong = client(key="hone_sk_wrong")
        self.refused(openai.AuthenticationError, wrong.models.list, code="invalid_api_key", status_code=401)

    def test_403(self):
        delete = lambda: self.api.models.delete("hone-tiny")
        self.refused(openai.PermissionDeniedError, delete, code="insufficient_permissions")

    def test_403_of_a_key_without_the_scope(self):
        body = {"name": "reader", "scopes": ["models:read"]}
        made = self.api.post(URL + "/api/keys", cast_to=object, body=body)
        reader = client(key=made["key"])
        self.assertEqual(reader.models.list().data[0].id, "hone-tiny")
        error = self.refused(openai.PermissionDeniedError, reader.files.list, code="missing_scope", status_code=403)
        self.assertIn("datasets:read", error.message)

    def test_404(self):
        self.refused(openai.NotFoundError, lambda: self.api.files.retrieve("file-abc"), param="id")
        missing = lambda: self.api.fine_tuning.jobs.retrieve("ftjob-abc")
        self.refused(openai.NotFoundError, missing, code="fine_tune_not_found")
        self.refused(openai.NotFoundError, lambda: self.api.models.retrieve("none"), code="model_not_found")
        ask = lambda: self.api.chat.completions.create(model="hone-tiny", messages=[])
        self.refused(openai.NotFoundError, ask, code="unknown_url")

    def test_422_when_the_parts_are_not_what_was_promised(self):
        content = chat(10)
        upload = self.api.uploads.create(
            bytes=len(content), filename="rows.jsonl", mime_type="text/jsonl", purpose="fine-tune"
        )
        self.assertEqual(upload.status, "pending")
        second = self.api.uploads.parts.create(upload.id, data=content[1000:])
        first = self.api.uploads.parts.create(upload.id, data=content[:1000])
        complete = lambda ids, **options: self.api.uploads.complete(upload.id, part_ids=ids, **options)
        wrong = lambda: complete([first.id, second.id], md5=hashlib.md5(b"other").hexdigest())
        self.refused(openai.UnprocessableEntityError, wrong, param="md5")
        self.refused(openai.BadRequestError, lambda: complete([first.id]), param="part_ids")
        done = complete([first.id, second.id], md5=hashlib.md5(content).hexdigest())
        self.addCleanup(self.forget, done.file.id)
        self.assertEqual(complete([first.id, second.id]).file, done.file)
        self.refused(openai.ConflictError, lambda: self.api.uploads.cancel(upload.id))
        upload = self.api.uploads.create(bytes=1, filename="a", mime_type="text/jsonl", purpose="fine-tune")
        self.assertEqual(self.api.uploads.cancel(upload.id).status, "cancelled")
        self.refused(openai.ConflictError, lambda: self.api.uploads.parts.create(upload.id, data=b"x"))

    def test_429_when_too_many_jobs_are_unfinished(self):
        file = self.upload(chat(4))
        method = supervised(n_epochs=10000)

        def create():
            self.train(training_file=file.id, method=method)

        # HONE_QUOTA jobs may be unfinished; the script starts Hone with it.
        for _ in range(int(os.environ["HONE_QUOTA"])):
            create()
        self.refused(openai.RateLimitError, create, code="rate_limit_exceeded")

    def test_503_without_the_gateway_and_the_clients_own_retry(self):
        state = json.loads((pathlib.Path(os.environ["HONE_DATA_DIR"]) / "state.json").read_text())
        (gateway,) = [s["process"]["pid"] for s in state["services"] if "gateway" in s["name"]]
        supervisor = state["hone"]["pid"]
        upload = lambda api: api.files.create(file=("rows.jsonl", chat(2)), purpose="fine-tune")
        # Stopped, it does not start the gateway again.
        os.kill(supervisor, signal.SIGSTOP)
        try:
            os.kill(gateway, signal.SIGKILL)
            self.refused(openai.InternalServerError, lambda: upload(self.api), status_code=503, type="server_error")
        finally:
            os.kill(supervisor, signal.SIGCONT)
        file = upload(client(max_retries=20))
        self.forget(file.id)

    def test_a_reply_that_is_lost_does_not_make_a_second_job(self):
        file = self.upload(chat(4))
        lost = []

        class Proxy(http.server.BaseHTTPRequestHandler):
            """Passes requests on, and keeps the first reply to itself."""

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                upstream = http.client.HTTPConnection(urllib.parse.urlsplit(URL).netloc, timeout=60)
                upstream.request("POST", self.path, body, dict(self.headers))
                reply = upstream.getresponse()
                content = reply.read()
                upstream.close()
                self.close_connection = True
                if not lost:
                    lost.append(json.loads(content)["id"])
                    return
                self.send_response(reply.status)
                self.send_header("content-type", reply.headers["content-type"])
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        through = client(f"http://127.0.0.1:{server.server_port}/v1", max_retries=2)
        job = through.fine_tuning.jobs.create(
            model="hone-tiny", training_file=file.id, metadata={"set": "lost"}, method=supervised(n_epochs=1)
        )
        self.assertEqual([job.id], lost)
        self.assertEqual([j.id for j in self.api.fine_tuning.jobs.list(metadata={"set": "lost"})], lost)
        self.wait_for(job.id, "succeeded")


if __name__ == "__main__":
    unittest.main(verbosity=2)
