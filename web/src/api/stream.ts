// What comes by itself: a job's events over a WebSocket, or server-sent events where those do not get through, and
// notifications. Every message has an id, and a stream goes on behind the last one that was seen.
import { getKey } from '@/auth/session'
import type { Schemas } from './client'
import { isOver, type StreamMessage } from './types'

export type Link = 'connecting' | 'live' | 'waiting' | 'over'

interface Handlers<T> {
  onMessage: (message: T) => void
  onLink?: (link: Link) => void
}

/** Milliseconds before try number `tries`: doubled up to half a minute, and never all clients at once. */
export const backoff = (tries: number, random = Math.random): number => Math.min(30_000, 500 * 2 ** tries) * (0.5 + random() / 2)

interface Parsed {
  id?: string
  event: string
  data: string
}

/** Reads server-sent events from pieces of text that may end anywhere. */
export function sseParser(onEvent: (event: Parsed) => void) {
  let rest = ''
  return (chunk: string) => {
    const blocks = (rest + chunk).split(/\r?\n\r?\n/)
    rest = blocks.pop() ?? ''
    for (const block of blocks) {
      const event: Parsed = { event: 'message', data: '' }
      for (const line of block.split(/\r?\n/)) {
        const colon = line.indexOf(':')
        if (colon <= 0) continue
        const [field, value] = [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, '')]
        if (field === 'data') event.data += event.data ? `\n${value}` : value
        else if (field === 'event') event.event = value
        else if (field === 'id') event.id = value
      }
      if (event.data || event.event !== 'message') onEvent(event)
    }
  }
}

/** One connection, until it ends; with a header for the key, which `EventSource` cannot send. */
async function readEvents(url: string, last: string | null, signal: AbortSignal, onOpen: () => void, onEvent: (event: Parsed) => void) {
  const headers: Record<string, string> = { accept: 'text/event-stream', authorization: `Bearer ${getKey()}` }
  if (last !== null) headers['last-event-id'] = last
  const reply = await fetch(url, { headers, signal })
  if (!reply.ok || !reply.body) throw new Error(`${reply.status}`)
  onOpen()
  const parse = sseParser(onEvent)
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader()
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return
    parse(value)
  }
}

const sleep = (ms: number, signal: AbortSignal) =>
  new Promise<void>((resolve) => {
    const timer = setTimeout(resolve, ms)
    signal.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true })
    // Back on the network: no need to wait any longer.
    addEventListener('online', () => resolve(), { once: true, signal })
  })

type Ending = 'over' | 'broken' | 'refused'

/** The job's messages behind `after`. Returns what stops it. */
export function watchJob(id: string, after: number, { onMessage, onLink }: Handlers<StreamMessage>): () => void {
  const control = new AbortController()
  const { signal } = control
  let last = after
  // Whether the last state was among the messages; a proxy may end a connection as politely as the server does.
  let over = false
  const take = (text: string) => {
    const message = JSON.parse(text) as StreamMessage
    if (message.id <= last) return
    last = message.id
    over ||= message.stream === 'state' && isOver(message.state)
    onMessage(message)
  }

  const overWebSocket = () =>
    new Promise<Ending>((resolve) => {
      const url = new URL(`/ws/training/${id}`, location.href)
      url.protocol = url.protocol.replace('http', 'ws')
      url.search = new URLSearchParams({ after: String(last), token: getKey() ?? '' }).toString()
      const socket = new WebSocket(url)
      let heard = false
      socket.addEventListener('open', () => onLink?.('live'))
      socket.addEventListener('message', (event) => ((heard = true), take(String(event.data))))
      socket.addEventListener('close', (event) => resolve(event.code === 1000 && over ? 'over' : heard ? 'broken' : 'refused'))
      signal.addEventListener('abort', () => socket.close(), { once: true })
    })

  const overEvents = async (): Promise<Ending> => {
    let ended: Ending = 'broken'
    try {
      await readEvents(`/training/jobs/${id}/events?after=${last}`, null, signal, () => onLink?.('live'), (event) => {
        if (event.event === 'end') ended = 'over'
        else if (event.event === 'message') take(event.data)
      })
    } catch {
      return 'refused'
    }
    return ended
  }

  void (async () => {
    // A proxy that does not pass WebSockets refuses them every time.
    let [tries, refusals] = [0, 0]
    onLink?.('connecting')
    while (!signal.aborted) {
      const ending = refusals >= 2 ? await overEvents() : await overWebSocket()
      if (signal.aborted) return
      if (ending === 'over') return onLink?.('over')
      if (ending === 'refused') [tries, refusals] = [tries + 1, (refusals + 1) % 4]
      else [tries, refusals] = [0, 0]
      onLink?.('waiting')
      await sleep(backoff(tries), signal)
    }
  })()
  return () => control.abort()
}

/** Notifications as they come, from now on. */
export function watchNotifications({ onMessage, onLink }: Handlers<Schemas['NotificationView']>): () => void {
  const control = new AbortController()
  const { signal } = control
  void (async () => {
    let [last, tries] = [null as string | null, 0]
    while (!signal.aborted) {
      try {
        await readEvents('/api/notifications/stream', last, signal, () => ((tries = 0), onLink?.('live')), (event) => {
          if (event.id !== undefined) last = event.id
          if (event.event === 'message') onMessage((JSON.parse(event.data) as Schemas['StreamedNotification']).notification)
        })
      } catch {
        tries += 1
      }
      if (signal.aborted) return
      onLink?.('waiting')
      await sleep(backoff(tries), signal)
    }
  })()
  return () => control.abort()
}
