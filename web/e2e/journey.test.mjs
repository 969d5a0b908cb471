// The main journey, as a person goes it: sign in, make a package in four steps, publish, watch it train, take the adapter.
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { api, assets, close, key, launch, pictures, url, visit } from './browser.mjs'

before(launch)
after(close)

test('a wrong key is refused, the right one leads where one wanted to go', async () => {
  const { page, clean, close: leave } = await visit({ signedIn: false, allow: [/401/] })
  await page.goto(`${url}/`)
  await page.waitForURL(/\/ui\/login/)
  await page.getByLabel('API key').fill('hone_sk_wrong')
  await page.getByRole('button', { name: 'Sign in' }).click()
  await page.getByText('This key is unknown, revoked or expired').waitFor()
  await page.getByLabel('API key').fill(key)
  await page.getByRole('button', { name: 'Sign in' }).click()
  await page.getByRole('heading', { name: 'Dashboard', level: 1 }).waitFor()
  assert.equal(await page.evaluate(() => localStorage.length + document.cookie.length), 0, 'nothing is kept beyond the tab')
  await page.getByRole('button', { name: 'Sign out' }).click()
  await page.waitForURL(/\/ui\/login/)
  clean()
  await leave()
})

test('from nothing to an adapter', { timeout: 600_000 }, async () => {
  // The browser says what it was answered to the broken file.
  const { page, clean, close: leave } = await visit({ allow: [/status of 422/] })
  await page.goto(`${url}/ui/data`)

  // A file with an error on line 2 is refused, with the line.
  await page.getByRole('button', { name: 'Upload a dataset' }).first().click()
  await page.getByLabel('Training file').setInputFiles({ name: 'broken.jsonl', mimeType: 'application/jsonl', buffer: Buffer.from('{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n{"messages": 3}\n') })
  await page.getByRole('dialog').getByRole('button', { name: 'Upload', exact: true }).click()
  await page.getByText('The upload was refused').waitFor()
  await page.getByRole('dialog').getByText(/2/).first().waitFor()
  await page.getByRole('dialog').getByRole('button', { name: 'Back' }).click()

  await page.getByRole('button', { name: 'Upload a dataset' }).first().click()
  await page.getByLabel('Training file').setInputFiles(join(assets, 'demo/train.jsonl'))
  await page.getByLabel('Validation file').setInputFiles(join(assets, 'demo/validation.jsonl'))
  await page.getByLabel('Name').fill('demo')
  await page.getByRole('dialog').getByRole('button', { name: 'Upload', exact: true }).click()
  await page.getByText('demo is ready').waitFor({ timeout: 60_000 })
  await page.getByRole('link', { name: 'demo', exact: true }).click()
  await page.getByText('Marked text is trained on').waitFor()
  await page.getByText(/Rewrite in modern English/).first().waitFor()

  await page.keyboard.press('g')
  await page.keyboard.press('p')
  await page.getByRole('button', { name: 'New package' }).first().click()
  await page.getByRole('dialog').getByLabel('Name').fill('modern-english')
  await page.getByRole('button', { name: 'Create and begin' }).click()
  await page.waitForURL(/\/edit\//)

  // Nothing chosen: the step says what is missing.
  await page.getByRole('button', { name: 'Continue' }).click()
  await page.locator('#step-model').getByText('Needs attention').waitFor()
  await page.getByRole('radio', { name: /hone-tiny/ }).check()
  await page.getByRole('button', { name: 'Continue' }).click()
  await page.locator('#step-model').getByText('Completed').waitFor()

  await page.getByRole('button', { name: /^Balanced/ }).click()
  await page.getByLabel('Learning rate').fill('-1')
  await page.getByRole('button', { name: 'Continue' }).click()
  await page.locator('#step-config').getByText('Needs attention').waitFor()
  await page.getByLabel('Learning rate').fill('2e-3')
  await page.getByLabel('Epochs').fill('1')
  await page.getByLabel('Batch size').fill('8')
  await page.getByLabel('Longest sequence').fill('128')
  await page.getByText('Advanced settings').click()
  await page.getByLabel('Most steps').fill('60')
  await page.getByLabel('Evaluate every').fill('15')
  await page.getByLabel('Checkpoint every').fill('20')
  await page.getByRole('button', { name: 'Continue' }).click()
  await page.locator('#step-config').getByText('Completed').waitFor()

  await page.getByRole('checkbox', { name: /demo/ }).check()
  await page.getByRole('spinbutton', { name: 'Share for training (%)' }).fill('97')
  await page.getByText('Unusual: between 50 and 95 % is common').waitFor()
  await page.getByRole('spinbutton', { name: 'Share for training (%)' }).fill('90')
  await page.getByRole('button', { name: 'Continue' }).click()
  await page.locator('#step-dataset').getByText('Completed').waitFor()

  await page.getByRole('radio', { name: /On this installation/ }).check()
  await page.getByLabel('Hardware').selectOption({ label: 'This machine · $0.00 / h' })
  await page.screenshot({ path: join(pictures, 'wizard-en-light.png'), fullPage: true })
  await page.getByRole('button', { name: 'Publish and train' }).click()
  await page.waitForURL(/\/ui\/jobs\//)

  // Live: curves appear and the state changes without loading the page again.
  await page.getByText('Training loss').first().waitFor()
  await page.locator('.uplot canvas').first().waitFor({ timeout: 120_000 })
  await page.screenshot({ path: join(pictures, 'job-running-en-light.png'), fullPage: true })
  await page.locator('h1').getByText('Succeeded').waitFor({ timeout: 300_000 })

  // Loaded again, the curve is still there.
  await page.reload()
  await page.locator('.uplot canvas').first().waitFor()
  await page.getByRole('tab', { name: 'Events' }).click()
  await page.getByText('Trainer started (attempt 1)').waitFor()
  await page.getByText(/Finished after 60 steps/).waitFor()
  await page.getByRole('tab', { name: 'Log', exact: true }).click()
  await page.getByRole('log').waitFor()
  await page.getByRole('tab', { name: 'Results' }).click()
  await page.getByRole('cell', { name: 'adapter_config.json', exact: true }).waitFor()
  clean()

  // The file comes from storage, which is another origin: by navigation, which is no request of the page.
  const coming = page.waitForEvent('download')
  await page.getByRole('link', { name: 'Download adapter_config.json' }).click()
  const config = JSON.parse(await readFile(await (await coming).path(), 'utf8'))
  assert.equal(config.peft_type, 'LORA')
  await leave()
})

test('versions: restored as a draft, compared, deleted', async () => {
  const { page, clean, close: leave } = await visit()
  await page.goto(`${url}/ui/packages`)
  await page.getByRole('link', { name: 'modern-english' }).click()
  await page.getByRole('cell', { name: 'modern-english-v1', exact: true }).waitFor()
  await page.getByRole('button', { name: 'Actions of modern-english-v1', exact: true }).click()
  await page.getByRole('menuitem', { name: 'Restore as a draft' }).click()
  await page.waitForURL(/\/edit\//)
  // All four steps are there, closed, with what they chose.
  await page.locator('#step-model').getByText('hone-tiny').waitFor()
  await page.getByRole('button', { name: 'Edit Configuration' }).click()
  await page.getByLabel('Learning rate').fill('1e-3')
  await page.getByRole('button', { name: 'Save now' }).click()
  await page.getByRole('status').getByText(/^Saved/).waitFor()
  await page.getByRole('link', { name: 'modern-english', exact: true }).click()
  for (const box of await page.getByRole('checkbox', { name: /^Compare modern-english/ }).all()) await box.check()
  await page.getByRole('cell', { name: /learning_rate/ }).waitFor()
  await page.getByRole('button', { name: /^Actions of modern-english-v2-draft/ }).click()
  await page.getByRole('menuitem', { name: 'Delete the draft' }).click()
  await page.getByRole('dialog').getByRole('button', { name: 'Delete' }).click()
  await page.getByRole('checkbox', { name: /v2-draft/ }).waitFor({ state: 'detached' })
  clean()
  await leave()
})

test('two tabs on one draft: other steps are put together, the same step is asked about', async () => {
  const made = await api('POST', '/api/training/packages', { name: `tabs-${Date.now()}` })
  const draft = await api('POST', '/api/training/versions', { package_id: made.id })
  const [one, two] = [await visit({ allow: [/412/] }), await visit({ allow: [/412/] })]
  for (const { page } of [one, two]) {
    await page.goto(`${url}/ui/packages/${made.id}/edit/${draft.id}`)
    await page.getByRole('radio', { name: /hone-tiny/ }).waitFor()
  }
  await one.page.getByRole('radio', { name: /hone-tiny/ }).check()
  await one.page.getByRole('button', { name: 'Save now' }).click()
  await one.page.getByText(/^Saved/).waitFor()
  await two.page.getByRole('navigation', { name: 'Steps' }).getByRole('button', { name: /Deploy/ }).click()
  await two.page.getByRole('radio', { name: /On this installation/ }).check()
  await two.page.getByRole('button', { name: 'Save now' }).click()
  await two.page.getByText('Changes of another window were taken over.').waitFor()
  await two.page.locator('#step-model').getByText('hone-tiny').waitFor()

  // Now the first tab changes what the second has changed.
  await one.page.getByRole('navigation', { name: 'Steps' }).getByRole('button', { name: /Deploy/ }).click()
  await one.page.getByRole('radio', { name: /Hugging Face Space/ }).check()
  await one.page.getByRole('button', { name: 'Save now' }).click()
  await one.page.getByRole('dialog', { name: 'Two versions of one draft' }).waitFor()
  await one.page.getByRole('button', { name: 'Keep mine' }).click()
  await one.page.getByRole('status').getByText(/^Saved/).waitFor()
  const stored = await api('GET', `/api/training/versions/${draft.id}`)
  assert.equal(stored.steps.deploy.target, 'hf_space')
  assert.equal(stored.steps.model.name, 'hone-tiny')
  for (const { clean, close: leave } of [one, two]) {
    clean()
    await leave()
  }
})

test('a job is paused, resumed and cancelled from its page', { timeout: 300_000 }, async () => {
  const datasets = await api('GET', '/datasets')
  const config = { name: 'long', model: 'hone-tiny', dataset: datasets.items.find((d) => d.name === 'demo').id, training: { max_steps: 5000, save_steps: 10, max_seq_length: 64, eval_steps: 0 } }
  const job = await api('POST', '/training/jobs', { config })
  const { page, clean, close: leave } = await visit()
  await page.goto(`${url}/ui/jobs/${job.id}`)
  await page.locator('h1').getByText('Live').waitFor()
  await page.locator('.uplot canvas').first().waitFor({ timeout: 120_000 })
  await page.getByRole('button', { name: 'Pause' }).click()
  await page.locator('h1').getByText('Paused').waitFor({ timeout: 60_000 })
  await page.getByRole('button', { name: 'Resume' }).click()
  await page.locator('h1').getByText('Running').waitFor({ timeout: 60_000 })
  await page.getByRole('button', { name: 'Cancel training' }).click()
  await page.getByRole('dialog').getByRole('button', { name: 'Cancel training' }).click()
  await page.locator('h1').getByText('Cancelled').waitFor({ timeout: 60_000 })
  // The news of it comes by itself.
  await page.getByText('Training cancelled').first().waitFor({ timeout: 30_000 })
  clean()
  await leave()
})

test('where WebSockets do not get through, server-sent events do', async () => {
  const { items } = await api('GET', '/training/jobs')
  const { page, clean, close: leave } = await visit()
  let refused = 0
  await page.routeWebSocket(/\/ws\/training\//, (socket) => {
    refused += 1
    void socket.close({ code: 1001 })
  })
  await page.goto(`${url}/ui/jobs/${items.find((one) => one.state === 'succeeded').id}?tab=events`)
  await page.getByText(/Finished after 60 steps/).waitFor({ timeout: 30_000 })
  assert.equal(refused, 2)
  clean()
  await leave()
})
