// A browser on a real Hone: signed in, with eyes on what it asks for and complains about.
import assert from 'node:assert/strict'
import { chromium } from 'playwright-core'

export const url = process.env.HONE_URL
export const key = process.env.HONE_API_KEY
export const assets = process.env.HONE_ASSETS
export const pictures = process.env.HONE_PICTURES

let browser

export async function launch() {
  browser = await chromium.launch({ executablePath: process.env.HONE_CHROMIUM, args: ['--no-sandbox', '--disable-dev-shm-usage', '--force-color-profile=srgb'] })
  return browser
}

export const close = () => browser?.close()

/** What a page must not do: ask another origin, log an error, break the content security policy. */
export function watch(page, { allow = [] } = {}) {
  const seen = []
  page.on('request', (request) => {
    const target = request.url()
    if (!target.startsWith(url) && !target.startsWith(url.replace('http', 'ws')) && !/^(blob|data):/.test(target)) seen.push(`request to ${target}`)
  })
  page.on('pageerror', (error) => seen.push(`error: ${error.message}`))
  page.on('console', (message) => {
    const text = message.text()
    if (message.type() === 'error' && !allow.some((pattern) => pattern.test(text))) seen.push(`console: ${text}`)
  })
  return () => assert.deepEqual(seen, [])
}

/** A fresh visitor, signed in unless told otherwise. */
export async function visit({ language = 'en', theme = 'light', phone = false, signedIn = true, allow } = {}) {
  const context = await browser.newContext({
    viewport: phone ? { width: 390, height: 844 } : { width: 1360, height: 900 },
    colorScheme: theme,
    locale: { en: 'en-US', ko: 'ko-KR' }[language],
    reducedMotion: 'reduce',
    acceptDownloads: true,
  })
  const page = await context.newPage()
  const clean = watch(page, { allow })
  if (signedIn) {
    await context.addInitScript((secret) => sessionStorage.getItem('hone.key') ?? sessionStorage.setItem('hone.key', secret), key)
  }
  return { context, page, clean, close: () => context.close() }
}

export async function api(method, path, body, headers = {}) {
  const reply = await fetch(url + path, {
    method,
    headers: { authorization: `Bearer ${key}`, ...(body ? { 'content-type': 'application/json' } : {}), ...headers },
    body: body && JSON.stringify(body),
  })
  const text = await reply.text()
  assert.ok(reply.ok, `${method} ${path}: ${reply.status} ${text}`)
  return text ? JSON.parse(text) : null
}
