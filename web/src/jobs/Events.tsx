import type { TFunction } from 'i18next'
import { useState } from 'react'
import { useTranslation } from 'react-i18next'
import type { StreamMessage } from '@/api/types'
import { useFormat } from '@/i18n/useFormat'
import { cn } from '@/lib/cn'
import { Button } from '@/ui/Button'
import { Card, Empty } from '@/ui/layout'
import type { Tone } from '@/ui/status'

const SHOWN = 100

const DOTS: Record<Tone, string> = {
  neutral: 'bg-line-strong',
  accent: 'bg-accent',
  success: 'bg-success',
  warning: 'bg-warning',
  danger: 'bg-danger',
  info: 'bg-info',
}

interface Line {
  tone: Tone
  title: string
  note?: string
  at: string
}

/** A message of the log in words; null for those that only move a progress bar. */
export function describe(message: StreamMessage, t: TFunction, format: ReturnType<typeof useFormat>): Line | null {
  if (message.stream === 'state') {
    const { state, failure, at } = message
    const tone: Tone = state === 'succeeded' ? 'success' : state === 'failed' ? 'danger' : state === 'retry_wait' || state === 'paused' ? 'warning' : 'accent'
    return { tone, title: t(`jobState.${state}`), note: failure?.message, at }
  }
  const { event } = message
  const line = (title: string, note?: string, tone: Tone = 'neutral'): Line => ({ tone, title, note, at: event.at })
  switch (event.type) {
    case 'started':
      return line(t('event.started', { attempt: message.attempt }), [event.device, t('event.threads', { count: event.threads }), event.resumed_from_step == null ? null : t('event.resumed', { step: format.count(event.resumed_from_step) })].filter(Boolean).join(' · '), 'info')
    case 'plan':
      return line(t('event.plan', { steps: format.count(event.total_steps) }), t('event.planNote', { rows: format.count(event.train_rows), tokens: format.compact(event.train_tokens), parameters: format.compact(event.trainable_parameters) }))
    case 'phase':
      return line(t(`phase.${event.phase}`), event.message)
    case 'checkpoint':
      return line(t('event.checkpoint', { step: format.count(event.step) }), format.bytes(event.size), 'info')
    case 'log':
      return line(event.message, undefined, event.level === 'error' ? 'danger' : event.level === 'warn' ? 'warning' : 'neutral')
    case 'finished':
      return line(t('event.finished', { steps: format.count(event.summary.steps) }), t('event.finishedNote', { count: event.manifest.length, time: format.duration(event.summary.train_seconds) }), 'success')
    case 'failed':
      return line(t(`failure.${event.failure.code}.meaning`), event.failure.message, 'danger')
    case 'stopped':
      return line(t('event.stopped', { step: format.count(event.step) }), undefined, 'warning')
    default:
      return null
  }
}

/** What happened, newest first. */
export function Events({ events }: { events: StreamMessage[] }) {
  const { t } = useTranslation()
  const format = useFormat()
  const [all, setAll] = useState(false)
  const lines = events.flatMap((message) => {
    const line = describe(message, t, format)
    return line ? [{ ...line, id: message.id }] : []
  })
  if (lines.length === 0) return <Card flush><Empty title={t('event.none')} /></Card>
  const newest = lines.toReversed()
  return (
    <Card>
      <ol className="relative flex flex-col gap-3 before:absolute before:top-2 before:bottom-2 before:left-[5px] before:w-px before:bg-line">
        {(all ? newest : newest.slice(0, SHOWN)).map((line) => (
          <li key={line.id} className="relative flex gap-3 pl-6">
            <span aria-hidden className={cn('absolute top-1.5 left-0 size-[11px] rounded-full border-2 border-surface', DOTS[line.tone])} />
            <div className="min-w-0 flex-1">
              <p className="break-words">{line.title}</p>
              {line.note && <p className="text-xs break-words text-muted">{line.note}</p>}
            </div>
            <time dateTime={line.at} className="tabular text-xs whitespace-nowrap text-muted">
              {format.time(line.at)}
            </time>
          </li>
        ))}
      </ol>
      {!all && newest.length > SHOWN && (
        <Button size="sm" className="mt-4" onClick={() => setAll(true)}>
          {t('event.all', { count: newest.length })}
        </Button>
      )}
    </Card>
  )
}
