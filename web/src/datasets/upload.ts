// Uploads from a browser, to the backend only: the content security policy allows no other origin, and storage need not
// be reachable from where the browser is.
import { api, ApiError, toError, type Schemas } from '@/api/client'
import { getKey } from '@/auth/session'
import type { Dataset } from '@/api/types'

/** Files above this go in parts, so that a broken connection costs one part. */
export const WHOLE = 16 << 20
const PART = 8 << 20
const TRIES = 5

export interface Progress {
  sent: number
  total: number
  phase: 'sending' | 'checking'
}

export interface Request {
  name: string
  train: File
  validation: File | null
  signal: AbortSignal
  onProgress: (progress: Progress) => void
}

/** What is remembered of an upload in parts, until it is complete or too old. */
interface Session {
  upload: string
  parts: (string | null)[]
  expires: number
}

const memory = (file: File): string => `hone.upload.${file.name}.${file.size}.${file.lastModified}`

export function recall(file: File, now = Date.now()): Session | null {
  try {
    const session = JSON.parse(localStorage.getItem(memory(file)) ?? 'null') as Session | null
    return session && session.expires > now + 60_000 && session.parts.length === Math.ceil(file.size / PART) ? session : null
  } catch {
    return null
  }
}

const remember = (file: File, session: Session | null) =>
  session ? localStorage.setItem(memory(file), JSON.stringify(session)) : localStorage.removeItem(memory(file))

/** Only JSON lines can go in parts; with a validation file both go at once. */
export const goesInParts = (train: File, validation: File | null): boolean => train.size > WHOLE && validation === null && /\.jsonl?$/i.test(train.name)

export async function upload(request: Request): Promise<Dataset> {
  return goesInParts(request.train, request.validation) ? inParts(request) : atOnce(request)
}

/** `fetch` does not tell how much was sent. */
function send(url: string, form: FormData, signal: AbortSignal, onSent: (bytes: number) => void): Promise<Response> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest()
    request.open('POST', url)
    request.setRequestHeader('authorization', `Bearer ${getKey()}`)
    request.upload.addEventListener('progress', (event) => onSent(event.loaded))
    request.addEventListener('load', () => {
      const headers = new Headers()
      const wait = request.getResponseHeader('retry-after')
      if (wait) headers.set('retry-after', wait)
      resolve(new Response(request.responseText, { status: request.status, statusText: request.statusText, headers }))
    })
    request.addEventListener('error', () => reject(new ApiError(0, null, 'the connection broke off')))
    request.addEventListener('abort', () => reject(new DOMException('aborted', 'AbortError')))
    signal.addEventListener('abort', () => request.abort(), { once: true })
    request.send(form)
  })
}

async function atOnce({ name, train, validation, signal, onProgress }: Request): Promise<Dataset> {
  const total = train.size + (validation?.size ?? 0)
  const form = new FormData()
  form.set('name', name)
  form.set('file', train)
  if (validation) form.set('validation', validation)
  const reply = await send('/datasets/upload', form, signal, (sent) => onProgress({ sent: Math.min(sent, total), total, phase: sent < total ? 'sending' : 'checking' }))
  if (!reply.ok) throw await toError(reply)
  return (await reply.json()) as Dataset
}

const passing = (error: unknown): boolean => error instanceof ApiError && (error.status === 0 || error.status === 429 || error.status >= 500)

async function inParts({ name, train, signal, onProgress }: Request): Promise<Dataset> {
  const session = recall(train) ?? (await open(train))
  remember(train, session)
  let done = session.parts.reduce((sum, one, at) => sum + (one ? sizeOf(train, at) : 0), 0)
  for (let at = 0; at < session.parts.length; at += 1) {
    if (session.parts[at]) continue
    // oxlint-disable-next-line no-await-in-loop -- one after the other, so that a slow line carries one part at a time
    session.parts[at] = await part(train, session.upload, at, signal, (sent) => onProgress({ sent: done + Math.min(sent, sizeOf(train, at)), total: train.size, phase: 'sending' }))
    done += sizeOf(train, at)
    remember(train, session)
  }
  onProgress({ sent: train.size, total: train.size, phase: 'checking' })
  const part_ids = session.parts.filter((one) => one !== null)
  const { data } = await api.POST('/v1/uploads/{id}/complete', { params: { path: { id: session.upload } }, body: { part_ids } })
  remember(train, null)
  const digits = data?.file?.id.replace(/^file-/, '') ?? ''
  const id = digits.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
  const renamed = await api.PATCH('/datasets/{id}', { params: { path: { id } }, body: { name } })
  return renamed.data as Dataset
}

const sizeOf = (file: File, at: number): number => Math.min(PART, file.size - at * PART)

async function open(file: File): Promise<Session> {
  const { data } = await api.POST('/v1/uploads', { body: { filename: file.name, bytes: file.size, purpose: 'fine-tune', mime_type: 'application/jsonl' } })
  const opened = data as Schemas['Upload']
  return { upload: opened.id, parts: Array.from({ length: Math.ceil(file.size / PART) }, () => null), expires: opened.expires_at * 1000 }
}

async function part(file: File, uploadId: string, at: number, signal: AbortSignal, onSent: (bytes: number) => void): Promise<string> {
  for (let tries = 1; ; tries += 1) {
    try {
      const form = new FormData()
      form.set('data', file.slice(at * PART, at * PART + sizeOf(file, at)))
      // oxlint-disable-next-line no-await-in-loop -- tries follow each other
      const reply = await send(`/v1/uploads/${uploadId}/parts`, form, signal, onSent)
      // oxlint-disable-next-line no-await-in-loop -- as above
      if (!reply.ok) throw await toError(reply)
      // oxlint-disable-next-line no-await-in-loop -- as above
      return ((await reply.json()) as Schemas['UploadedPart']).id
    } catch (error) {
      if (error instanceof ApiError && error.status === 404) remember(file, null)
      if (!passing(error) || tries === TRIES) throw error
      const wait = error instanceof ApiError && error.retryAfter !== null ? error.retryAfter * 1000 : 500 * 2 ** tries
      // oxlint-disable-next-line no-await-in-loop -- as above
      await new Promise((resolve) => setTimeout(resolve, wait))
    }
  }
}

/** A name for a dataset from that of its file. */
export const nameOf = (file: File): string => file.name.replace(/\.[a-z]+$/i, '').toLowerCase().replace(/[^a-z0-9._-]+/g, '-').replace(/^[-.]+|[-.]+$/g, '')
