import { useQuery, useQueryClient } from '@tanstack/react-query'
import { useEffect, useEffectEvent, useMemo, useRef, useState } from 'react'
import { api, body } from '@/api/client'
import { watchJob, type Link } from '@/api/stream'
import { isOver, type Job, type MetricPoint, type StreamMessage } from '@/api/types'
import { append } from '@/curves/series'

/** Points of the whole curve that the page begins with; below that each is a step of its own. */
const POINTS = 2_000

export interface Live {
  points: MetricPoint[]
  /** Every step is among them. */
  whole: boolean
  /** What happened, without the metrics, oldest first. */
  events: StreamMessage[]
  link: Link
}

/**
 * The curve and the event log of a job. The curve is there at once; the log is read from its beginning and then followed,
 * so a page that is loaded again shows the same. Messages are taken over once per frame.
 */
export function useJobStream(job: Job): Live {
  const client = useQueryClient()
  const base = useQuery({
    queryKey: ['jobs', 'one', job.id, 'curve'],
    queryFn: ({ signal }) => body(api.GET('/training/jobs/{id}/metrics', { params: { path: { id: job.id }, query: { points: POINTS } }, signal })),
    staleTime: Number.POSITIVE_INFINITY,
    gcTime: 0,
  }).data?.items
  const [messages, setMessages] = useState<StreamMessage[]>([])
  const [link, setLink] = useState<Link>('connecting')
  const waiting = useRef<StreamMessage[]>([])

  // A state that changed is in the job, too.
  const refresh = useEffectEvent((batch: StreamMessage[]) => {
    if (batch.some((message) => message.stream === 'state') && !isOver(job.state)) void client.invalidateQueries({ queryKey: ['jobs'] })
    if (batch.some((message) => message.stream === 'event' && message.event.type === 'checkpoint')) {
      void client.invalidateQueries({ queryKey: ['jobs', 'one', job.id, 'checkpoints'] })
    }
  })

  useEffect(() => {
    let frame = 0
    setMessages([])
    waiting.current = []
    const flush = () => {
      frame = 0
      const batch = waiting.current
      waiting.current = []
      setMessages((old) => [...old, ...batch])
      refresh(batch)
    }
    const stop = watchJob(job.id, 0, {
      onLink: setLink,
      onMessage: (message) => {
        waiting.current.push(message)
        // A page in the background gets no frames, and need not lag behind for ever.
        frame ||= document.hidden ? window.setTimeout(flush, 1000) : requestAnimationFrame(flush)
      },
    })
    return () => {
      stop()
      cancelAnimationFrame(frame)
      clearTimeout(frame)
    }
  }, [job.id])

  const points = useMemo(() => append(base ?? [], messages), [base, messages])
  const events = useMemo(() => messages.filter((message) => message.stream === 'state' || message.event.type !== 'metrics'), [messages])
  return { points, whole: (base?.length ?? 0) < POINTS, events, link }
}
