import { useTranslation } from 'react-i18next'
import { cn } from '@/lib/cn'
import { STEPS, type StepId, type StepStatus } from './steps'
import { StepMark } from './StepHeader'

/** All steps at a glance; a click goes to one. */
export function Timeline({ statuses, current, onGo }: { statuses: Record<StepId, StepStatus>; current: StepId | null; onGo: (step: StepId) => void }) {
  const { t } = useTranslation()
  const done = STEPS.filter((step) => statuses[step] === 'completed').length
  return (
    <nav aria-label={t('wizard.progress')} className="mb-4">
      <ol className="flex items-center gap-1 sm:gap-2">
        {STEPS.map((step, at) => (
          <li key={step} className={cn('flex items-center gap-1 sm:gap-2', at > 0 && 'flex-1')}>
            {at > 0 && <span aria-hidden className={cn('h-px min-w-2 flex-1', statuses[STEPS[at - 1] ?? step] === 'completed' ? 'bg-success' : 'bg-line-strong')} />}
            <button type="button" aria-current={current === step ? 'step' : undefined} onClick={() => onGo(step)} className={cn('flex items-center gap-2 rounded-md p-1.5 hover:bg-hover', current === step && 'font-semibold')}>
              <StepMark status={statuses[step]} number={at + 1} />
              <span className="max-sm:sr-only">{t(`step.${step}Short`)}</span>
              <span className="sr-only">: {t(`stepStatus.${statuses[step]}`)}</span>
            </button>
          </li>
        ))}
      </ol>
      <p className="sr-only" role="status">
        {t('wizard.done', { done, total: STEPS.length })}
      </p>
    </nav>
  )
}
