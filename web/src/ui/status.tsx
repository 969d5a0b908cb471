import { Ban, CircleCheck, CircleDashed, CirclePause, CircleX, Clock, LoaderCircle, type LucideIcon } from 'lucide-react'
import { useTranslation } from 'react-i18next'
import type { Schemas } from '@/api/client'
import type { JobState } from '@/api/types'
import { cn } from '@/lib/cn'

const TONES = {
  neutral: 'bg-hover text-muted',
  accent: 'bg-accent-soft text-accent-text',
  success: 'bg-success-soft text-success',
  warning: 'bg-warning-soft text-warning',
  danger: 'bg-danger-soft text-danger',
  info: 'bg-info-soft text-info',
} as const
export type Tone = keyof typeof TONES

export function Badge({ tone = 'neutral', icon: Icon, spin, children }: { tone?: Tone; icon?: LucideIcon; spin?: boolean; children: React.ReactNode }) {
  return (
    <span className={cn('inline-flex h-5 items-center gap-1 rounded-full px-2 text-2xs font-medium whitespace-nowrap', TONES[tone])}>
      {Icon && <Icon aria-hidden className={cn('size-3', spin && 'animate-spin')} />}
      {children}
    </span>
  )
}

// A state has a picture and a word besides its colour.
const JOBS: Record<JobState, [Tone, LucideIcon]> = {
  validating: ['info', LoaderCircle],
  queued: ['neutral', Clock],
  starting: ['info', LoaderCircle],
  running: ['accent', LoaderCircle],
  finalizing: ['accent', LoaderCircle],
  retry_wait: ['warning', Clock],
  pausing: ['warning', LoaderCircle],
  paused: ['warning', CirclePause],
  cancelling: ['neutral', LoaderCircle],
  succeeded: ['success', CircleCheck],
  failed: ['danger', CircleX],
  cancelled: ['neutral', Ban],
}

export function JobBadge({ state }: { state: JobState }) {
  const { t } = useTranslation()
  const [tone, icon] = JOBS[state]
  return (
    <Badge tone={tone} icon={icon} spin={icon === LoaderCircle}>
      {t(`jobState.${state}`)}
    </Badge>
  )
}

const TRAININGS: Record<Schemas['TrainingStatus'], [Tone, LucideIcon]> = {
  pending: ['neutral', Clock],
  running: ['accent', LoaderCircle],
  completed: ['success', CircleCheck],
  failed: ['danger', CircleX],
  cancelled: ['neutral', Ban],
}

export function TrainingBadge({ status }: { status: Schemas['TrainingStatus'] }) {
  const { t } = useTranslation()
  const [tone, icon] = TRAININGS[status]
  return (
    <Badge tone={tone} icon={icon} spin={icon === LoaderCircle}>
      {t(`trainingStatus.${status}`)}
    </Badge>
  )
}

const VERSIONS: Record<Schemas['VersionStatus'], [Tone, LucideIcon]> = {
  draft: ['info', CircleDashed],
  published: ['success', CircleCheck],
  archived: ['neutral', Ban],
}

export function VersionBadge({ status }: { status: Schemas['VersionStatus'] }) {
  const { t } = useTranslation()
  const [tone, icon] = VERSIONS[status]
  return (
    <Badge tone={tone} icon={icon}>
      {t(`versionStatus.${status}`)}
    </Badge>
  )
}

const DATASETS: Record<Schemas['DatasetStatus'], [Tone, LucideIcon]> = {
  uploading: ['info', LoaderCircle],
  validating: ['info', LoaderCircle],
  ready: ['success', CircleCheck],
  invalid: ['danger', CircleX],
}

export function DatasetBadge({ status }: { status: Schemas['DatasetStatus'] }) {
  const { t } = useTranslation()
  const [tone, icon] = DATASETS[status]
  return (
    <Badge tone={tone} icon={icon} spin={icon === LoaderCircle}>
      {t(`datasetStatus.${status}`)}
    </Badge>
  )
}

/** A line without axes. What it says in words is the label. */
export function Sparkline({ values, label, width = 96, height = 24 }: { values: number[]; label: string; width?: number; height?: number }) {
  const finite = values.filter(Number.isFinite)
  if (finite.length < 2) return <span className="text-muted">–</span>
  const [low, high] = [Math.min(...finite), Math.max(...finite)]
  const [stepX, span] = [(width - 2) / (finite.length - 1), high - low || 1]
  const path = finite.map((value, at) => `${at ? 'L' : 'M'}${(1 + at * stepX).toFixed(1)} ${(1 + (height - 2) * (1 - (value - low) / span)).toFixed(1)}`).join('')
  return (
    <svg role="img" aria-label={label} width={width} height={height} viewBox={`0 0 ${width} ${height}`}>
      <path d={path} fill="none" stroke="var(--curve-1)" strokeWidth={1.5} strokeLinejoin="round" />
    </svg>
  )
}
