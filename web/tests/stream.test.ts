import { describe, expect, it } from 'vitest'
import { backoff, sseParser } from '@/api/stream'

describe('server-sent events', () => {
  const parse = (chunks: string[]) => {
    const events: object[] = []
    const feed = sseParser((event) => events.push(event))
    chunks.forEach((chunk) => feed(chunk))
    return events
  }

  it('are the same however the pieces are cut', () => {
    const text = 'retry: 2000\n\nid: 7\ndata: {"a":1}\n\n: keep-alive\n\nevent: end\ndata: {}\n\n'
    const whole = parse([text])
    expect(whole).toEqual([
      { event: 'message', id: '7', data: '{"a":1}' },
      { event: 'end', data: '{}' },
    ])
    for (let cut = 1; cut < text.length; cut += 1) expect(parse([text.slice(0, cut), text.slice(cut)]), String(cut)).toEqual(whole)
  })

  it('that are not finished are waited for', () => {
    expect(parse(['id: 1\ndata: x\n'])).toEqual([])
  })
})

it('waits longer and longer, up to half a minute, and never exactly', () => {
  expect([0, 1, 2, 9].map((tries) => backoff(tries, () => 1))).toEqual([500, 1000, 2000, 30_000])
  expect(backoff(2, () => 0)).toBe(1000)
})
