import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { Box, Download, Search } from 'lucide-react'
import { useEffect, useId, useState } from 'react'
import { useTranslation } from 'react-i18next'
import { api } from '@/api/client'
import { hubSearchQuery, modelsQuery, pullsQuery } from '@/api/queries'
import { useFormat } from '@/i18n/useFormat'
import { cn } from '@/lib/cn'
import { Button } from '@/ui/Button'
import { Input, Segmented } from '@/ui/form'
import { Empty, Failed, Loaded, Progress } from '@/ui/layout'
import { Badge } from '@/ui/status'
import { toast } from '@/ui/toast'
import type { StepProps } from './TrainingPackageWizard'

type Source = 'registry' | 'hub'

export function ModelStep({ draft }: StepProps) {
  const { t } = useTranslation()
  const [source, setSource] = useState<Source>('registry')
  const [search, setSearch] = useState('')
  return (
    <>
      <div className="flex flex-wrap items-center gap-2">
        <Segmented label={t('model.source')} value={source} onChange={setSource} options={[{ value: 'registry', label: t('model.registry') }, { value: 'hub', label: t('model.hub') }]} />
        <div className="relative min-w-48 flex-1">
          <Search aria-hidden className="pointer-events-none absolute top-2 left-2.5 size-4 text-muted" />
          <Input type="search" aria-label={t('model.search')} placeholder={t('model.search')} value={search} onChange={(event) => setSearch(event.target.value)} className="pl-8" />
        </div>
      </div>
      {source === 'registry' ? <Registry draft={draft} search={search} onHub={() => setSource('hub')} /> : <Hub search={search} />}
    </>
  )
}

function Registry({ draft, search, onHub }: Pick<StepProps, 'draft'> & { search: string; onHub: () => void }) {
  const { t } = useTranslation()
  const format = useFormat()
  const group = useId()
  const models = useQuery(modelsQuery)
  const chosen = draft.content.steps.model?.name
  return (
    <Loaded query={models}>
      {({ items }) => {
        const shown = items.filter((model) => model.status === 'ready' && model.name.toLowerCase().includes(search.toLowerCase()))
        if (shown.length === 0) {
          return (
            <Empty icon={Box} title={t(items.length === 0 ? 'model.none' : 'model.noMatch')} action={<Button onClick={onHub}>{t('model.fromHub')}</Button>}>
              {items.length === 0 && t('model.noneLead')}
            </Empty>
          )
        }
        return (
          <div role="radiogroup" aria-label={t('step.model')} className="grid gap-2 sm:grid-cols-2">
            {shown.map((model) => (
              <label
                key={`${model.name}@${model.revision}`}
                className={cn('flex cursor-pointer items-start gap-3 rounded-lg border p-3 hover:border-muted has-focus-visible:outline-2 has-focus-visible:outline-ring', chosen === model.name && 'border-accent bg-accent-soft')}
              >
                <input type="radio" name={group} checked={chosen === model.name} onChange={() => draft.setStep('model', { name: model.name })} className="mt-0.5 accent-(--accent)" />
                <span className="min-w-0 flex-1">
                  <span className="block truncate font-medium">{model.name}</span>
                  <span className="tabular flex flex-wrap items-center gap-x-2 text-xs text-muted">
                    {model.info && <span>{t('model.parameters', { count: model.info.parameters, value: format.compact(model.info.parameters) })}</span>}
                    <span>{format.bytes(model.size)}</span>
                    {model.info && <span>{model.info.architecture}</span>}
                    {model.info && !model.info.has_chat_template && <span>{t('model.noTemplate')}</span>}
                  </span>
                </span>
                {model.size > 10e9 && <Badge tone="warning">{t('model.large')}</Badge>}
              </label>
            ))}
          </div>
        )
      }}
    </Loaded>
  )
}

function useDebounced<T>(value: T, ms: number): T {
  const [late, setLate] = useState(value)
  useEffect(() => {
    const timer = setTimeout(() => setLate(value), ms)
    return () => clearTimeout(timer)
  }, [value, ms])
  return late
}

/** Models of the Hugging Face Hub; one that is fetched appears in the registry. */
export function Hub({ search }: { search: string }) {
  const { t } = useTranslation()
  const format = useFormat()
  const client = useQueryClient()
  const wanted = useDebounced(search.trim(), 400)
  const found = useQuery(hubSearchQuery(wanted))
  const pulls = useQuery(pullsQuery).data?.items ?? []
  const running = pulls.filter((pull) => pull.status === 'queued' || pull.status === 'running')
  const ended = pulls.filter((pull) => pull.status === 'succeeded').length
  const pull = useMutation({
    mutationFn: (id: string) => api.POST('/api/models/pull', { body: { id } }),
    onSuccess: () => client.invalidateQueries({ queryKey: ['models'] }),
    onError: (error) => toast.failure(t('model.pullFailed'), error),
  })
  useEffect(() => {
    void client.invalidateQueries({ queryKey: modelsQuery.queryKey })
  }, [client, ended])

  return (
    <div className="flex flex-col gap-3">
      {running.map((one) => (
        <div key={one.id} className="rounded-lg border p-3">
          <p className="mb-1.5 flex justify-between gap-2">
            <span className="truncate font-medium">{one.repo}</span>
            <span className="tabular text-xs text-muted">
              {format.bytes(one.bytes_done)} / {format.bytes(one.bytes_total)}
            </span>
          </p>
          <Progress value={one.bytes_total ? one.bytes_done / one.bytes_total : null} label={t('model.pulling', { name: one.repo })} />
        </div>
      ))}
      {wanted.length < 2 ? (
        <p className="py-6 text-center text-muted">{t('model.type')}</p>
      ) : found.error ? (
        <Failed error={found.error} retry={() => void found.refetch()} />
      ) : (
        <Loaded query={found}>
          {({ items }) =>
            items.length === 0 ? (
              <Empty title={t('model.noMatch')} />
            ) : (
              <ul className="divide-y rounded-lg border">
                {items.map((model) => (
                  <li key={model.id} className="flex items-center gap-3 px-3 py-2">
                    <span className="min-w-0 flex-1">
                      <span className="block truncate font-medium">{model.id}</span>
                      <span className="tabular text-xs text-muted">
                        {t('model.downloads', { count: model.downloads, value: format.compact(model.downloads) })}
                        {model.pipeline_tag && ` · ${model.pipeline_tag}`}
                      </span>
                    </span>
                    {model.gated && <Badge tone="warning">{t('model.gated')}</Badge>}
                    <Button size="sm" busy={pull.isPending && pull.variables === model.id} onClick={() => pull.mutate(model.id)} aria-label={t('model.pullOf', { name: model.id })}>
                      <Download aria-hidden />
                      {t('model.pull')}
                    </Button>
                  </li>
                ))}
              </ul>
            )
          }
        </Loaded>
      )}
    </div>
  )
}
