import { useQuery } from '@tanstack/react-query'
import { CircleCheck, CloudOff, GitMerge, LoaderCircle, PencilLine } from 'lucide-react'
import { useEffect, useRef, useState, type ReactNode } from 'react'
import { useTranslation } from 'react-i18next'
import { datasetsQuery, gpuConfigsQuery } from '@/api/queries'
import type { Version } from '@/api/types'
import { useFormat } from '@/i18n/useFormat'
import { Ago } from '@/ui/Ago'
import { Button } from '@/ui/Button'
import { Notice } from '@/ui/layout'
import { Dialog } from '@/ui/overlay'
import { ConfigStep } from './ConfigStep'
import { DatasetStep } from './DatasetStep'
import { DeployStep } from './DeployStep'
import { read, type Config } from './fields'
import { ModelStep } from './ModelStep'
import { StepSection } from './StepHeader'
import { firstOpen, messagesOf, next, statusOf, STEPS, type Messages, type StepId, type StepStatus } from './steps'
import { Timeline } from './Timeline'
import { useDraft, type Draft } from './useDraft'

export interface StepProps {
  draft: Draft
  errors: Messages
  warnings: Messages
}

const CONTENT: Record<Exclude<StepId, 'deploy'>, (props: StepProps) => ReactNode> = { model: ModelStep, config: ConfigStep, dataset: DatasetStep }

/** From a base model to a published version, in four steps. */
export function TrainingPackageWizard({ version: initial, packageId }: { version: Version; packageId: string }) {
  const { t } = useTranslation()
  const draft = useDraft(initial)
  const { version, content } = draft
  const [open, setOpen] = useState<StepId | null>(() => firstOpen(initial.steps, initial.validation))
  // Errors are shown of steps one has tried to finish, and not of those one has not come to.
  const [tried, setTried] = useState<ReadonlySet<StepId>>(() => new Set(STEPS.filter((step) => initial.steps[step] != null)))
  const moved = useRef(false)

  useEffect(() => {
    if (!moved.current || !open) return
    document.querySelector<HTMLButtonElement>(`#step-${open} h2 button`)?.focus({ preventScroll: false })
  }, [open])

  const statuses = Object.fromEntries(STEPS.map((step) => [step, statusOf(step, content.steps, version.validation, open, tried)])) as Record<StepId, StepStatus>

  function go(step: StepId | null) {
    moved.current = true
    if (open && content.steps[open] != null) setTried((old) => new Set([...old, open]))
    setOpen(step)
    void draft.flush()
  }

  async function finish(step: StepId) {
    setTried((old) => new Set([...old, step]))
    const saved = await draft.flush()
    if (!saved) return
    const wrong = Object.keys(messagesOf(step, saved.validation?.errors)).length > 0
    if (!wrong) go(next(step))
  }

  return (
    <div>
      <div className="mb-3 flex min-h-6 flex-wrap items-center justify-between gap-2">
        <SaveSign draft={draft} />
      </div>
      <Timeline statuses={statuses} current={open} onGo={go} />
      {draft.merged > 0 && (
        <div className="mb-3">
          <Notice tone="info" title={t('wizard.merged')} />
        </div>
      )}
      <div className="flex flex-col gap-3">
        {STEPS.map((step, at) => {
          const errors = tried.has(step) ? messagesOf(step, version.validation?.errors) : {}
          const warnings = messagesOf(step, version.validation?.warnings)
          const Content = step === 'deploy' ? null : CONTENT[step]
          return (
            <StepSection key={step} step={step} number={at + 1} status={statuses[step]} open={open === step} onToggle={() => go(open === step ? null : step)} summary={<Summary step={step} draft={draft} />}>
              <div className="flex flex-col gap-4">
                <StepMessages errors={errors} warnings={warnings} />
                {Content ? (
                  <>
                    <Content draft={draft} errors={errors} warnings={warnings} />
                    <div className="flex justify-end border-t pt-4">
                      <Button variant="primary" busy={draft.save === 'saving'} onClick={() => void finish(step)}>
                        {t('wizard.continue')}
                      </Button>
                    </div>
                  </>
                ) : (
                  <DeployStep draft={draft} errors={errors} warnings={warnings} packageId={packageId} statuses={statuses} onTry={() => setTried(new Set(STEPS))} onGo={go} />
                )}
              </div>
            </StepSection>
          )
        })}
      </div>
      <Conflict draft={draft} />
    </div>
  )
}

/** What concerns a step as a whole; messages of fields stand at the fields. */
function StepMessages({ errors, warnings }: { errors: Messages; warnings: Messages }) {
  return (
    <>
      {errors[''] && <Notice tone="danger" title={errors['']} />}
      {Object.entries(warnings).map(([path, text]) => (
        <Notice key={path} tone="warning" title={text} />
      ))}
    </>
  )
}

/** Whether what one sees is stored. */
function SaveSign({ draft }: { draft: Draft }) {
  const { t } = useTranslation()
  const signs = {
    saved: [CircleCheck, 'text-success'],
    dirty: [PencilLine, 'text-muted'],
    saving: [LoaderCircle, 'text-muted animate-spin'],
    failed: [CloudOff, 'text-danger'],
    conflict: [GitMerge, 'text-warning'],
  } as const
  const [Icon, look] = signs[draft.save]
  return (
    <>
      <p role="status" className="flex items-center gap-1.5 text-xs text-muted">
        <Icon aria-hidden className={`size-3.5 ${look}`} />
        {t(`save.${draft.save}`)}
        {draft.save === 'saved' && <Ago at={draft.savedAt ? new Date(draft.savedAt).toISOString() : draft.version.updated_at} />}
        {draft.save === 'failed' && draft.error instanceof Error && <span className="text-danger">{draft.error.message}</span>}
      </p>
      <Button size="sm" variant="ghost" disabled={draft.save === 'saved' || draft.save === 'saving'} onClick={() => void draft.flush()}>
        {t('save.now')}
      </Button>
    </>
  )
}

/** Two people, or two tabs, changed the same step. */
function Conflict({ draft }: { draft: Draft }) {
  const { t } = useTranslation()
  if (!draft.conflict) return null
  const { clashes } = draft.conflict
  return (
    <Dialog
      open
      onClose={() => draft.settle('theirs')}
      title={t('conflict.title')}
      description={t('conflict.lead')}
      footer={
        <>
          <Button onClick={() => draft.settle('theirs')}>{t('conflict.theirs')}</Button>
          <Button variant="primary" onClick={() => draft.settle('mine')}>
            {t('conflict.mine')}
          </Button>
        </>
      }
    >
      <ul className="mb-2 list-disc pl-5">
        {clashes.map((clash) => (
          <li key={clash}>{clash === 'name' || clash === 'change_summary' ? t(`wizard.${clash}`) : t(`step.${clash}`)}</li>
        ))}
      </ul>
    </Dialog>
  )
}

/** What a step chose, in a few words. */
function Summary({ step, draft }: { step: StepId; draft: Draft }) {
  const { t } = useTranslation()
  const format = useFormat()
  const { steps } = draft.content
  const datasets = useQuery(datasetsQuery).data?.items
  const gpus = useQuery(gpuConfigsQuery).data
  switch (step) {
    case 'model':
      return steps.model ? steps.model.name : null
    case 'config': {
      if (!steps.config) return null
      const config = steps.config as Config
      const [epochs, rate] = [read(config, 'training.num_train_epochs') ?? 1, read(config, 'training.learning_rate') ?? 2e-4]
      return t('summary.config', { method: t(`method.${String(config['method'] ?? 'sft')}`), epochs, rate })
    }
    case 'dataset': {
      const chosen = steps.dataset?.datasets.map((choice) => datasets?.find((one) => one.id === choice.id)?.name ?? choice.name ?? choice.id)
      if (!chosen?.length) return null
      const split = steps.dataset?.train_split
      return split == null ? chosen.join(', ') : t('summary.dataset', { names: chosen.join(', '), split: format.count(split) })
    }
    case 'deploy': {
      if (!steps.deploy?.target) return null
      const gpu = gpus?.find((one) => one.id === steps.deploy?.gpu_config)
      const budget = steps.deploy.budget_limit
      return [t(`target.${steps.deploy.target}`), gpu?.name, budget == null ? null : t('summary.budget', { limit: format.money(budget, gpu?.currency ?? 'USD') })].filter(Boolean).join(' · ')
    }
  }
}
