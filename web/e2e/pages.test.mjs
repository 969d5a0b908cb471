// Every page, in both languages and both colours, on a desk and on a phone: accessible, within its width, from one origin.
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { api, close, launch, pictures, url, visit } from './browser.mjs'

const axe = await readFile(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')
const RULES = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']

before(launch)
after(close)

/** The pages, with what exists after the journey. */
async function places() {
  const [jobs, packages, datasets] = await Promise.all(['/training/jobs', '/api/training/packages', '/datasets'].map((path) => api('GET', path)))
  const job = jobs.items.find((one) => one.state === 'succeeded')
  const pack = packages.items.find((one) => one.name === 'modern-english')
  const dataset = datasets.items.find((one) => one.name === 'demo')
  const refused = datasets.items.find((one) => one.status === 'invalid')
  const other = packages.items.find((one) => one.name.startsWith('tabs-'))
  const drafts = await api('GET', `/api/training/versions?package_id=${other.id}`)
  return {
    dashboard: '/',
    jobs: '/jobs',
    job: `/jobs/${job.id}`,
    'job-events': `/jobs/${job.id}?tab=events`,
    'job-log': `/jobs/${job.id}?tab=log`,
    'job-results': `/jobs/${job.id}?tab=checkpoints`,
    'job-config': `/jobs/${job.id}?tab=config`,
    packages: '/packages',
    package: `/packages/${pack.id}`,
    wizard: `/packages/${other.id}/edit/${drafts.items[0].id}`,
    datasets: '/data',
    dataset: `/data/${dataset.id}`,
    'dataset-refused': `/data/${refused.id}`,
    models: '/models',
    costs: '/costs',
    notifications: '/notifications',
    keys: '/settings',
    webhooks: '/settings?tab=webhooks',
    audit: '/settings?tab=audit',
    appearance: '/settings?tab=appearance',
    'not-found': '/nowhere',
  }
}

async function settle(page) {
  await page.locator('h1, [class*=min-h-]').first().waitFor()
  await page.waitForFunction(() => document.querySelectorAll('.skeleton').length === 0)
  await page.evaluate(() => document.fonts.ready)
}

async function check(page, name) {
  await page.evaluate(axe)
  const { violations } = await page.evaluate((values) => globalThis.axe.run(document, { runOnly: { type: 'tag', values } }), RULES)
  const told = violations.map((one) => `${one.id}: ${one.nodes.map((node) => `${node.target.join(' ')} ${node.any[0]?.message ?? ''}`).slice(0, 3).join(' | ')}`)
  return told.map((one) => `${name}: ${one}`)
}

for (const theme of ['light', 'dark']) {
  for (const language of ['en', 'ko']) {
    test(`every page, ${language}, ${theme}`, { timeout: 300_000 }, async () => {
      const { page, clean, close: leave } = await visit({ language, theme })
      const found = []
      for (const [name, path] of Object.entries(await places())) {
        await page.goto(`${url}/ui${path}`)
        await settle(page)
        assert.equal(await page.evaluate(() => document.documentElement.lang), language)
        await page.screenshot({ path: join(pictures, `${name}-${language}-${theme}.png`), fullPage: true })
        found.push(...(await check(page, name)))
      }
      assert.deepEqual(found, [])
      clean()
      await leave()
    })
  }
}

test('the page to sign in', async () => {
  for (const theme of ['light', 'dark']) {
    const { page, clean, close: leave } = await visit({ theme, signedIn: false })
    await page.goto(`${url}/ui/login`)
    await page.getByLabel('API key').waitFor()
    await page.screenshot({ path: join(pictures, `login-en-${theme}.png`) })
    assert.deepEqual(await check(page, 'login'), [])
    clean()
    await leave()
  }
})

test('on a phone nothing is wider than the screen', { timeout: 300_000 }, async () => {
  const { page, clean, close: leave } = await visit({ phone: true })
  const wide = []
  for (const [name, path] of Object.entries(await places())) {
    await page.goto(`${url}/ui${path}`)
    await settle(page)
    await page.screenshot({ path: join(pictures, `${name}-phone.png`) })
    const width = await page.evaluate(() => document.documentElement.scrollWidth)
    if (width > 390) wide.push(`${name}: ${width}`)
  }
  assert.deepEqual(wide, [])
  await page.goto(`${url}/ui/`)
  await page.getByRole('button', { name: 'Open the menu' }).click()
  await page.getByRole('link', { name: 'Costs' }).click()
  await page.getByRole('heading', { name: 'Costs', level: 1 }).waitFor()
  clean()
  await leave()
})

test('the keyboard is enough', async () => {
  const { page, clean, close: leave } = await visit()
  await page.goto(`${url}/ui/`)
  await page.getByRole('heading', { name: 'Dashboard', level: 1 }).waitFor()
  await page.keyboard.press('Tab')
  assert.equal(await page.evaluate(() => document.activeElement?.textContent), 'Skip to the content')
  await page.keyboard.press('Control+k')
  await page.getByRole('combobox').fill('setti')
  assert.deepEqual(await check(page, 'palette'), [])
  await page.keyboard.press('Enter')
  await page.waitForURL(/\/settings/)
  await page.keyboard.press('?')
  await page.getByRole('dialog', { name: 'Keyboard shortcuts' }).waitFor()
  assert.deepEqual(await check(page, 'shortcuts'), [])
  await page.keyboard.press('Escape')
  await page.getByRole('dialog').waitFor({ state: 'detached' })
  await page.keyboard.press('g')
  await page.keyboard.press('j')
  await page.getByRole('heading', { name: 'Jobs', level: 1 }).waitFor()
  clean()
  await leave()
})

test('a key is shown once, and a webhook is tested', async () => {
  const { page, clean, close: leave } = await visit()
  const name = `ci-${Date.now()}`
  await page.goto(`${url}/ui/settings`)
  await page.getByRole('button', { name: 'New key' }).click()
  await page.getByRole('dialog').getByLabel('Name').fill(name)
  await page.getByRole('button', { name: 'Create the key' }).click()
  const secret = await page.getByRole('textbox', { name: 'The new key' }).inputValue()
  assert.match(secret, /^hone_sk_[0-9a-f]{64}$/)
  assert.deepEqual(await check(page, 'secret'), [])
  await page.getByRole('button', { name: 'I have stored it' }).click()
  await page.getByRole('cell', { name, exact: true }).waitFor()
  assert.ok(!(await page.content()).includes(secret))
  await page.getByRole('button', { name: `Revoke ${name}` }).click()
  await page.getByRole('dialog').getByRole('button', { name: 'Revoke' }).click()
  await page.getByRole('row', { name: new RegExp(name) }).getByRole('cell', { name: 'Revoked' }).waitFor()

  await page.getByRole('tab', { name: 'Webhooks' }).click()
  await page.getByRole('button', { name: 'New webhook' }).click()
  // Nobody listens there: the delivery says so.
  const hook = `http://127.0.0.1:9/${name}`
  await page.getByLabel('URL').fill(hook)
  await page.getByRole('button', { name: 'Create the webhook' }).click()
  await page.getByRole('button', { name: 'I have stored it' }).click()
  await page.getByRole('listitem').filter({ hasText: hook }).getByRole('button', { name: 'Send a test' }).click()
  await page.getByRole('cell', { name: 'webhook.test' }).waitFor()
  clean()
  await leave()
})
