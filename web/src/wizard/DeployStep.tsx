import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { useNavigate } from '@tanstack/react-router'
import { Calculator, Play, Rocket } from 'lucide-react'
import { useTranslation } from 'react-i18next'
import { api, ApiError, idempotencyKey } from '@/api/client'
import { gpuConfigsQuery } from '@/api/queries'
import type { Steps } from '@/api/types'
import { Estimate } from '@/jobs/Estimate'
import { useFormat } from '@/i18n/useFormat'
import { cn } from '@/lib/cn'
import { Button } from '@/ui/Button'
import { Field, Input, Select } from '@/ui/form'
import { Failed, Notice } from '@/ui/layout'
import { toast } from '@/ui/toast'
import type { Config } from './fields'
import { STEPS, type StepId, type StepStatus } from './steps'
import type { StepProps } from './TrainingPackageWizard'

const TARGETS = ['local', 'hf_space'] as const

type Props = StepProps & {
  packageId: string
  statuses: Record<StepId, StepStatus>
  /** Shows the errors of every step. */
  onTry: () => void
  onGo: (step: StepId) => void
}

export function DeployStep({ draft, errors, packageId, statuses, onTry, onGo }: Props) {
  const { t } = useTranslation()
  const format = useFormat()
  const gpus = useQuery(gpuConfigsQuery).data ?? []
  const deploy = draft.content.steps.deploy ?? {}
  const set = (change: Partial<NonNullable<Steps['deploy']>>) => draft.setStep('deploy', { ...deploy, ...change })
  const missing = STEPS.filter((step) => step !== 'deploy' && statuses[step] !== 'completed')
  const gpu = gpus.find((one) => one.id === deploy.gpu_config)

  return (
    <>
      <fieldset>
        <legend className="mb-1 text-xs font-medium">{t('deploy.target')}</legend>
        <div className="grid gap-2 sm:grid-cols-2">
          {TARGETS.map((target) => (
            <label key={target} className={cn('flex cursor-pointer items-start gap-3 rounded-lg border p-3 hover:border-muted has-focus-visible:outline-2 has-focus-visible:outline-ring', deploy.target === target && 'border-accent bg-accent-soft')}>
              <input type="radio" name="target" checked={deploy.target === target} onChange={() => set({ target })} className="mt-0.5 accent-(--accent)" />
              <span>
                <span className="block font-medium">{t(`target.${target}`)}</span>
                <span className="text-xs text-muted">{t(`targetLead.${target}`)}</span>
              </span>
            </label>
          ))}
        </div>
        {errors['target'] && <p className="mt-1 text-xs text-danger">{errors['target']}</p>}
      </fieldset>
      <div className="grid gap-x-4 gap-y-3 sm:grid-cols-2">
        <Field label={t('deploy.hardware')} help={t('deploy.hardwareHelp')} error={errors['gpu_config']}>
          {(control) => (
            <Select {...control} value={deploy.gpu_config ?? ''} onChange={(event) => set({ gpu_config: event.target.value || null })}>
              <option value="">{t('deploy.anyHardware')}</option>
              {gpus.map((one) => (
                <option key={one.id} value={one.id}>
                  {one.name} · {t('job.perHour', { price: format.money(one.price_per_hour, one.currency) })}
                </option>
              ))}
            </Select>
          )}
        </Field>
        <Field label={t('deploy.budget', { currency: gpu?.currency ?? 'USD' })} help={t('deploy.budgetHelp')} error={errors['budget_limit']}>
          {(control) => <Input {...control} type="number" min={0.01} step={0.01} value={deploy.budget_limit ?? ''} onChange={(event) => set({ budget_limit: event.target.value === '' ? null : Number(event.target.value) })} />}
        </Field>
        {deploy.target === 'hf_space' && (
          <Field label={t('deploy.space')} help={t('deploy.spaceHelp')} error={errors['space_name']} required>
            {(control) => <Input {...control} placeholder="owner/name" value={deploy.space_name ?? ''} onChange={(event) => set({ space_name: event.target.value || null })} />}
          </Field>
        )}
        <Field label={t('wizard.change_summary')} help={t('wizard.changeHelp')}>
          {(control) => <Input {...control} value={draft.content.change_summary} onChange={(event) => draft.setText('change_summary', event.target.value)} />}
        </Field>
      </div>
      <EstimateNow draft={draft} />
      {missing.length > 0 && (
        <Notice tone="warning" title={t('wizard.missing')}>
          <span className="flex flex-wrap gap-2">
            {missing.map((step) => (
              <button key={step} type="button" className="font-medium text-accent-text hover:underline" onClick={() => onGo(step)}>
                {t(`step.${step}`)}
              </button>
            ))}
          </span>
        </Notice>
      )}
      <Publish draft={draft} packageId={packageId} onTry={onTry} />
    </>
  )
}

/** The configuration of the job that the steps describe, as `POST /training/estimate` takes it. */
function jobOf(steps: Steps) {
  const config = (steps.config ?? {}) as Config
  const training = (config['training'] ?? {}) as Config
  const split = steps.dataset?.train_split
  const held = split == null ? training : { ...training, val_set_size: (100 - split) / 100 }
  return { config: { ...config, model: steps.model?.name, dataset: steps.dataset?.datasets[0]?.id, training: held }, gpu_config: steps.deploy?.gpu_config }
}

function EstimateNow({ draft }: Pick<StepProps, 'draft'>) {
  const { t } = useTranslation()
  const { steps } = draft.content
  const estimate = useMutation({ mutationFn: async () => (await api.POST('/training/estimate', { body: jobOf(steps) })).data })
  const ready = steps.model && steps.dataset?.datasets[0]
  return (
    <section aria-label={t('estimate.title')} className="flex flex-col gap-3 rounded-lg border p-3">
      <div className="flex flex-wrap items-center justify-between gap-2">
        <div>
          <h3 className="font-medium">{t('estimate.title')}</h3>
          <p className="text-xs text-muted">{t('estimate.lead')}</p>
        </div>
        <Button size="sm" disabled={!ready} busy={estimate.isPending} onClick={() => estimate.mutate()}>
          <Calculator aria-hidden />
          {t('estimate.run')}
        </Button>
      </div>
      {estimate.error && <Failed error={estimate.error} />}
      {estimate.data && <Estimate estimate={estimate.data} />}
    </section>
  )
}

function Publish({ draft, packageId, onTry }: Pick<StepProps, 'draft'> & { packageId: string; onTry: () => void }) {
  const { t } = useTranslation()
  const [client, navigate] = [useQueryClient(), useNavigate()]
  const publish = useMutation({
    mutationFn: async (launch: boolean) => {
      onTry()
      const saved = await draft.flush()
      if (!saved) return
      const path = { id: saved.id }
      const { data: published } = await api.POST('/api/training/versions/{id}/publish', { params: { path, header: { 'If-Match': `"${saved.revision}"` } } })
      await client.invalidateQueries({ queryKey: ['packages'] })
      await client.invalidateQueries({ queryKey: ['versions'] })
      toast.success({ title: t('wizard.published', { name: published?.name }) })
      if (!launch) return navigate({ to: '/packages/$id', params: { id: packageId } })
      const { data: job } = await api.POST('/api/training/versions/{id}/launch', { params: { path, header: { 'Idempotency-Key': idempotencyKey() } } }).catch(async (error: unknown) => {
        // Published it is; what keeps it from starting is shown where it can be started again.
        await navigate({ to: '/packages/$id', params: { id: packageId } })
        throw error
      })
      await client.invalidateQueries({ queryKey: ['jobs'] })
      if (job) await navigate({ to: '/jobs/$id', params: { id: job.id } })
    },
    onError: (error) => {
      if (!(error instanceof ApiError && error.status === 422)) toast.failure(t('wizard.publishFailed'), error)
    },
  })
  const refused = publish.error instanceof ApiError && publish.error.status === 422 ? publish.error : null
  return (
    <>
      {refused && (
        <Notice tone="danger" title={refused.message}>
          <ul className="list-disc pl-4">
            {refused.problem?.errors?.map((error) => (
              <li key={error.path}>
                <code className="font-mono text-xs">{error.path}</code>: {error.message}
              </li>
            ))}
          </ul>
        </Notice>
      )}
      <div className="flex flex-wrap justify-end gap-2 border-t pt-4">
        <Button busy={publish.isPending && publish.variables === false} disabled={publish.isPending} onClick={() => publish.mutate(false)}>
          <Rocket aria-hidden />
          {t('wizard.publish')}
        </Button>
        <Button variant="primary" busy={publish.isPending && publish.variables === true} disabled={publish.isPending} onClick={() => publish.mutate(true)}>
          <Play aria-hidden />
          {t('wizard.publishAndLaunch')}
        </Button>
      </div>
    </>
  )
}
