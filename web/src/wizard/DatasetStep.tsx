import { useQuery } from '@tanstack/react-query'
import { Database, Upload } from 'lucide-react'
import { lazy, Suspense, useState } from 'react'
import { useTranslation } from 'react-i18next'
import { datasetsQuery } from '@/api/queries'
import type { Dataset } from '@/api/types'
import { RowsPreview } from '@/datasets/RowsPreview'
import { useFormat } from '@/i18n/useFormat'
import { cn } from '@/lib/cn'
import { Button } from '@/ui/Button'
import { Field, Input } from '@/ui/form'
import { Empty, Loaded, Notice } from '@/ui/layout'
import type { StepProps } from './TrainingPackageWizard'

const UploadDialog = lazy(() => import('@/datasets/UploadDialog').then((m) => ({ default: m.UploadDialog })))

export function DatasetStep({ draft, errors, warnings }: StepProps) {
  const { t } = useTranslation()
  const [uploading, setUploading] = useState(false)
  const query = useQuery(datasetsQuery)
  const step = draft.content.steps.dataset
  const chosen = new Set(step?.datasets.map((choice) => choice.id))
  const split = step?.train_split
  const first = query.data?.items.find((one) => chosen.has(one.id))
  const validated = first?.files.some((file) => file.split === 'validation') ?? false

  const toggle = (dataset: Dataset) => {
    const next = new Set(chosen)
    if (!next.delete(dataset.id)) next.add(dataset.id)
    draft.setStep('dataset', { ...step, datasets: [...next].map((id) => ({ id })) })
  }
  const setSplit = (text: string) => draft.setStep('dataset', { datasets: step?.datasets ?? [], train_split: text.trim() === '' ? null : Number(text) })
  // What the server says at the next save, said at once.
  const unusual = split != null && (split < 50 || split > 95) && !warnings['train_split'] ? t('dataset.splitUnusual') : undefined

  return (
    <>
      <div className="flex justify-end">
        <Button size="sm" onClick={() => setUploading(true)}>
          <Upload aria-hidden />
          {t('datasets.upload')}
        </Button>
      </div>
      <Loaded query={query}>
        {({ items }) => {
          const ready = items.filter((one) => one.status === 'ready' || chosen.has(one.id))
          if (ready.length === 0) return <Empty icon={Database} title={t('dataset.none')}>{t('dataset.noneLead')}</Empty>
          return (
            <fieldset className="grid gap-2 sm:grid-cols-2">
              <legend className="sr-only">{t('step.dataset')}</legend>
              {ready.map((one) => (
                <Choice key={one.id} dataset={one} chosen={chosen.has(one.id)} toggle={() => toggle(one)} />
              ))}
            </fieldset>
          )
        }}
      </Loaded>
      {chosen.size > 1 && <Notice tone="warning" title={t('dataset.several')} />}
      <div className="grid gap-4 sm:grid-cols-2">
        <Field label={t('dataset.split')} help={t(validated ? 'dataset.splitUnused' : 'dataset.splitHelp')} error={errors['train_split']} warning={unusual}>
          {(control) => (
            <span className="flex items-center gap-3">
              <input type="range" aria-label={t('dataset.split')} min={1} max={100} value={split ?? 95} onChange={(event) => setSplit(event.target.value)} className="min-w-0 flex-1 accent-(--accent)" />
              <Input {...control} type="number" min={1} max={100} value={split ?? ''} placeholder="95" onChange={(event) => setSplit(event.target.value)} className="w-20!" />
            </span>
          )}
        </Field>
      </div>
      {first && (
        <section aria-label={t('dataset.preview')}>
          <h3 className="mb-2 text-xs font-medium">{t('dataset.previewOf', { name: first.name })}</h3>
          <RowsPreview dataset={first} limit={3} />
        </section>
      )}
      <Suspense>{uploading && <UploadDialog onClose={() => setUploading(false)} onReady={(dataset) => !chosen.has(dataset.id) && toggle(dataset)} />}</Suspense>
    </>
  )
}

function Choice({ dataset, chosen, toggle }: { dataset: Dataset; chosen: boolean; toggle: () => void }) {
  const { t } = useTranslation()
  const format = useFormat()
  return (
    <label className={cn('flex cursor-pointer items-start gap-3 rounded-lg border p-3 hover:border-muted has-focus-visible:outline-2 has-focus-visible:outline-ring', chosen && 'border-accent bg-accent-soft')}>
      <input type="checkbox" checked={chosen} onChange={toggle} className="mt-0.5 accent-(--accent)" />
      <span className="min-w-0 flex-1">
        <span className="block truncate font-medium">{dataset.name}</span>
        <span className="tabular flex flex-wrap gap-x-2 text-xs text-muted">
          <span>{t('datasets.rows', { count: dataset.rows })}</span>
          <span>{format.bytes(dataset.size)}</span>
          {dataset.format && <span>{t(`format.${dataset.format}`)}</span>}
        </span>
      </span>
    </label>
  )
}
