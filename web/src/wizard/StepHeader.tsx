import { Check, ChevronDown, CircleAlert, Pencil } from 'lucide-react'
import { useId, type ReactNode } from 'react'
import { useTranslation } from 'react-i18next'
import { cn } from '@/lib/cn'
import { Button } from '@/ui/Button'
import type { StepId, StepStatus } from './steps'

const LOOKS: Record<StepStatus, string> = {
  not_started: 'border-line-strong text-muted',
  in_progress: 'border-accent text-accent-text',
  completed: 'border-transparent bg-success-soft text-success',
  error: 'border-transparent bg-danger-soft text-danger',
}

/** The sign of a step: its number, or what became of it. */
export function StepMark({ status, number }: { status: StepStatus; number: number }) {
  return (
    <span aria-hidden className={cn('tabular grid size-6 shrink-0 place-items-center rounded-full border-2 text-xs font-semibold [&_svg]:size-3.5', LOOKS[status])}>
      {status === 'completed' ? <Check strokeWidth={3} /> : status === 'error' ? <CircleAlert strokeWidth={2.5} /> : number}
    </span>
  )
}

interface Props {
  step: StepId
  number: number
  status: StepStatus
  open: boolean
  onToggle: () => void
  /** What was chosen, in a few words; shown while the step is closed. */
  summary: ReactNode
  children: ReactNode
}

/** One step of the wizard: a header that says how it stands and opens it. */
export function StepSection({ step, number, status, open, onToggle, summary, children }: Props) {
  const { t } = useTranslation()
  const id = useId()
  return (
    <section id={`step-${step}`} aria-labelledby={`${id}-title`} className={cn('scroll-mt-4 rounded-lg border bg-surface', open && 'border-line-strong')}>
      <div className="flex items-center gap-3 px-4">
        <h2 id={`${id}-title`} className="min-w-0 flex-1">
          <button type="button" aria-expanded={open} aria-controls={`${id}-content`} onClick={onToggle} className="flex min-h-14 w-full items-center gap-3 py-2 text-left">
            <StepMark status={status} number={number} />
            <span className="min-w-0 flex-1">
              <span className="flex flex-wrap items-center gap-x-2">
                <span className="font-semibold">{t(`step.${step}`)}</span>
                <span className={cn('text-xs font-normal', status === 'error' ? 'text-danger' : status === 'completed' ? 'text-success' : 'text-muted')}>{t(`stepStatus.${status}`)}</span>
              </span>
              <span className="block truncate font-normal text-muted">{!open && summary ? summary : t(`step.${step}Lead`)}</span>
            </span>
            <ChevronDown aria-hidden className={cn('size-4 shrink-0 text-muted transition-transform', open && 'rotate-180')} />
          </button>
        </h2>
        {status === 'completed' && !open && (
          <Button size="sm" variant="ghost" onClick={onToggle} aria-label={t('step.editOf', { step: t(`step.${step}`) })}>
            <Pencil aria-hidden />
            {t('step.edit')}
          </Button>
        )}
      </div>
      <div id={`${id}-content`} hidden={!open} className="border-t p-4">
        {open && children}
      </div>
    </section>
  )
}
