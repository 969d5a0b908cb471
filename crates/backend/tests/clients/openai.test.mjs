// OpenAI's Node client, unmodified, against a running Hone: only the base URL and the key differ.
//
// scripts/test-clients.sh starts the Hone and says where it is: HONE_URL, HONE_API_KEY.

import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import OpenAI, { toFile } from "openai";

const baseURL = `${process.env.HONE_URL}/v1`;
const api = new OpenAI({ baseURL, apiKey: process.env.HONE_API_KEY, maxRetries: 0 });
const PATIENCE = 120_000;

function chat(rows) {
  const row = (i) => ({
    messages: [
      { role: "user", content: `What follows word ${i}?` },
      { role: "assistant", content: `Word ${i + 1} follows.` },
    ],
  });
  return Array.from({ length: rows }, (_, i) => `${JSON.stringify(row(i))}\n`).join("");
}

function pairs(rows) {
  const say = (content) => [{ role: "assistant", content }];
  const row = (i) => ({
    input: { messages: [{ role: "user", content: `What follows word ${i}?` }] },
    preferred_output: say(`Word ${i + 1} follows.`),
    non_preferred_output: say("I do not know."),
  });
  return Array.from({ length: rows }, (_, i) => `${JSON.stringify(row(i))}\n`).join("");
}

async function upload(content) {
  const file = await toFile(Buffer.from(content), "rows.jsonl");
  return await api.files.create({ file, purpose: "fine-tune" });
}

async function until(what, look) {
  const deadline = Date.now() + PATIENCE;
  for (;;) {
    const found = await look();
    if (found) return found;
    assert.ok(Date.now() < deadline, `waited too long for ${what}`);
    await sleep(200);
  }
}

const waitFor = (id, status) =>
  until(`${id} to be ${status}`, async () => {
    const job = await api.fineTuning.jobs.retrieve(id);
    assert.ok(job.status === status || !["failed", "cancelled"].includes(job.status), JSON.stringify(job));
    return job.status === status ? job : null;
  });

async function collect(pages) {
  const items = [];
  for await (const item of pages) items.push(item);
  return items;
}

test("a supervised job from file to model", async () => {
  const train = await upload(chat(32));
  const valid = await upload(chat(4));
  assert.deepEqual([train.object, train.status, train.purpose], ["file", "processed", "fine-tune"]);
  const job = await api.fineTuning.jobs.create({
    model: "hone-tiny",
    training_file: train.id,
    validation_file: valid.id,
    suffix: "node",
    metadata: { client: "node" },
    method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 2, batch_size: "auto" } } },
  });
  assert.deepEqual(job.hyperparameters, { n_epochs: 2, batch_size: 4, learning_rate_multiplier: 1 });
  const done = await waitFor(job.id, "succeeded");
  assert.match(done.fine_tuned_model, /^ft:hone-tiny:local:node:[0-9a-f]{12}$/);

  const events = await collect(api.fineTuning.jobs.listEvents(job.id, { limit: 5 }));
  assert.equal(new Set(events.map((e) => e.id)).size, events.length);
  assert.equal(events[0].message, "The job has successfully completed");
  assert.equal(events.filter((e) => e.type === "metrics" && e.data.train_loss > 0).length, 16);
  const checkpoints = await collect(api.fineTuning.jobs.checkpoints.list(job.id, { limit: 1 }));
  assert.deepEqual(checkpoints.map((c) => c.step_number), [16, 8]);
  assert.ok(checkpoints[0].metrics.full_valid_loss > 0);
  const csv = await (await api.files.content(done.result_files[0])).text();
  assert.equal(csv.trim().split("\n")[0], "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy");
  assert.equal(csv.split("\n").filter((line) => /^\d+,\d/.test(line)).length, 16);

  const listed = await collect(api.fineTuning.jobs.list({ metadata: { client: "node" } }));
  assert.deepEqual(listed.map((j) => j.id), [job.id]);
  const models = await collect(api.models.list());
  assert.ok(models.some((m) => m.id === done.fine_tuned_model) && models.some((m) => m.id === "hone-tiny"));
  assert.equal((await api.models.retrieve(done.fine_tuned_model)).id, done.fine_tuned_model);
  assert.equal((await api.models.delete(done.fine_tuned_model)).deleted, true);
  for (const file of [train, valid]) assert.equal((await api.files.delete(file.id)).deleted, true);
});

test("a dpo job is paused, resumed and cancelled", async () => {
  const file = await upload(pairs(16));
  const hyperparameters = { beta: 0.2, n_epochs: 10_000 };
  const job = await api.fineTuning.jobs.create({
    model: "hone-tiny",
    training_file: file.id,
    method: { type: "dpo", dpo: { hyperparameters } },
  });
  assert.equal(job.method.dpo.hyperparameters.beta, 0.2);
  const steps = async () => {
    const events = (await api.fineTuning.jobs.listEvents(job.id)).data;
    return Math.max(0, ...events.filter((e) => e.type === "metrics").map((e) => e.data.step));
  };
  await until("the first steps", async () => (await steps()) >= 2);
  await api.fineTuning.jobs.pause(job.id);
  await waitFor(job.id, "paused");
  const reached = await steps();
  await api.fineTuning.jobs.resume(job.id);
  await until("more steps", async () => (await steps()) > reached);
  assert.equal((await api.fineTuning.jobs.cancel(job.id)).status, "cancelled");
  await until("the end", async () => (await api.fineTuning.jobs.retrieve(job.id)).finished_at);
  await assert.rejects(api.fineTuning.jobs.resume(job.id), OpenAI.ConflictError);
  await api.files.delete(file.id);
});

test("every refusal is the client's own class of error", async () => {
  const bad = await upload('{"messages": [\n');
  assert.equal(bad.status, "error");
  const create = (changes) => api.fineTuning.jobs.create({ model: "hone-tiny", training_file: bad.id, ...changes });
  await assert.rejects(create({}), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.deepEqual([error.param, error.code], ["training_file", "invalid_training_file"]);
    assert.match(error.message, /line 1/);
    return true;
  });
  await assert.rejects(create({ integrations: [{ type: "wandb", wandb: { project: "p" } }] }), OpenAI.BadRequestError);
  await api.files.delete(bad.id);
  const wrong = new OpenAI({ baseURL, apiKey: "hone_sk_wrong", maxRetries: 0 });
  await assert.rejects(collect(wrong.models.list()), OpenAI.AuthenticationError);
  await assert.rejects(api.models.delete("hone-tiny"), OpenAI.PermissionDeniedError);
  await assert.rejects(api.files.retrieve("file-abc"), OpenAI.NotFoundError);
  await assert.rejects(api.fineTuning.jobs.retrieve("ftjob-abc"), OpenAI.NotFoundError);
});
