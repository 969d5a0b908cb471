import createClient, { type Middleware } from 'openapi-fetch'
import { getKey, setKey } from '@/auth/session'
import type { components, paths } from './generated/schema'

export type Schemas = components['schemas']
export type Problem = Schemas['Problem']
export type FieldError = Schemas['FieldError']

/** A refusal of the API, or that it could not be reached (`status` 0). */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly problem: Problem | null,
    message: string,
    /** Seconds after which another try makes sense. */
    readonly retryAfter: number | null = null,
  ) {
    super(message)
    this.name = 'ApiError'
  }

  get code(): string {
    return this.problem?.code ?? (this.status === 0 ? 'OFFLINE' : 'INTERNAL')
  }
}

export async function toError(response: Response): Promise<ApiError> {
  const text = await response.text().catch(() => '')
  let told: { detail?: string; title?: string; error?: { message?: string } } = {}
  try {
    told = JSON.parse(text)
  } catch {
    // A proxy answered; its status has to do.
  }
  const problem = told.detail === undefined ? null : (told as Problem)
  const message = told.detail ?? told.error?.message ?? `${response.status} ${response.statusText}`
  const wait = Number(response.headers.get('retry-after') ?? Number.NaN)
  return new ApiError(response.status, problem, message, Number.isFinite(wait) ? wait : null)
}

const session: Middleware = {
  onRequest({ request }) {
    const key = getKey()
    if (key) request.headers.set('authorization', `Bearer ${key}`)
    return request
  },
  async onResponse({ response, request }) {
    if (response.ok || response.status === 304) return response
    // The key was revoked or has expired; the one that was sent, not one that has replaced it since.
    if (response.status === 401 && request.headers.get('authorization') === `Bearer ${getKey()}`) setKey(null)
    throw await toError(response)
  },
  onError({ error }) {
    if (error instanceof DOMException && error.name === 'AbortError') return error
    return new ApiError(0, null, error instanceof Error ? error.message : String(error))
  },
}

export const api = createClient<paths>({ baseUrl: '/' })
api.use(session)

/** The body of a reply. Refusals were thrown before. */
export async function body<T>(reply: Promise<{ data?: T }>): Promise<T> {
  const { data } = await reply
  return data as T
}

/** For requests that create: repeating it is harmless. */
export const idempotencyKey = (): string => crypto.randomUUID()

/** Field errors of a refusal by path; empty for others. */
export function fieldErrors(error: unknown): Record<string, string> {
  const errors = error instanceof ApiError ? (error.problem?.errors ?? []) : []
  return Object.fromEntries(errors.map((e) => [e.path, e.suggestion ? `${e.message} (${e.suggestion}?)` : e.message]))
}
