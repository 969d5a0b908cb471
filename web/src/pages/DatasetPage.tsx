import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { Link, useNavigate, useParams } from '@tanstack/react-router'
import { Scissors, Trash2 } from 'lucide-react'
import { useState, type FormEvent } from 'react'
import { useTranslation } from 'react-i18next'
import { api, fieldErrors } from '@/api/client'
import { datasetQuery, datasetStatisticsQuery, datasetUsageQuery } from '@/api/queries'
import type { Dataset } from '@/api/types'
import { Histogram } from '@/datasets/Histogram'
import { RowsPreview } from '@/datasets/RowsPreview'
import { useFormat } from '@/i18n/useFormat'
import { Button } from '@/ui/Button'
import { Field, Input } from '@/ui/form'
import { Card, Empty, Facts, Loaded, Mono, Notice, PageHeader, Table, Td } from '@/ui/layout'
import { Confirm, Dialog } from '@/ui/overlay'
import { DatasetBadge } from '@/ui/status'
import { toast } from '@/ui/toast'
import { useTitle } from './useTitle'

export function DatasetPage() {
  const { id } = useParams({ from: '/app/data/$id' })
  return <Loaded query={useQuery(datasetQuery(id))}>{(dataset) => <Detail key={dataset.id} dataset={dataset} />}</Loaded>
}

function Detail({ dataset }: { dataset: Dataset }) {
  const { t } = useTranslation()
  const [client, navigate] = [useQueryClient(), useNavigate()]
  const [asking, setAsking] = useState<'split' | 'delete' | null>(null)
  useTitle(dataset.name)
  const remove = useMutation({
    mutationFn: () => api.DELETE('/datasets/{id}', { params: { path: { id: dataset.id } } }),
    onSuccess: async () => {
      await navigate({ to: '/data' })
      await client.invalidateQueries({ queryKey: ['datasets'] })
    },
    onError: (error) => toast.failure(t('datasets.deleteFailed'), error),
    onSettled: () => setAsking(null),
  })
  const ready = dataset.status === 'ready'
  return (
    <>
      <PageHeader
        above={<Link to="/data" className="hover:underline">{t('nav.datasets')}</Link>}
        title={
          <span className="flex flex-wrap items-center gap-2">
            {dataset.name}
            <DatasetBadge status={dataset.status} />
          </span>
        }
        lead={dataset.description || undefined}
        actions={
          <>
            {ready && (
              <Button onClick={() => setAsking('split')}>
                <Scissors aria-hidden />
                {t('datasets.split')}
              </Button>
            )}
            <Button variant="danger" onClick={() => setAsking('delete')}>
              <Trash2 aria-hidden />
              {t('actions.delete')}
            </Button>
          </>
        }
      />
      <div className="grid items-start gap-3 lg:grid-cols-[minmax(0,1fr)_20rem]">
        <div className="flex min-w-0 flex-col gap-3">
          <Report dataset={dataset} />
          {ready && (
            <Card title={t('dataset.preview')}>
              <RowsPreview dataset={dataset} />
            </Card>
          )}
        </div>
        <div className="flex min-w-0 flex-col gap-3">
          <About dataset={dataset} />
          <Usage id={dataset.id} />
        </div>
      </div>
      <Confirm open={asking === 'delete'} onClose={() => setAsking(null)} busy={remove.isPending} title={t('datasets.deleteTitle', { name: dataset.name })} description={t('datasets.deleteLead')} action={t('actions.delete')} onConfirm={() => remove.mutate()} />
      {asking === 'split' && <Split dataset={dataset} onClose={() => setAsking(null)} />}
    </>
  )
}

/** What validation found, with the place of each error. */
function Report({ dataset }: { dataset: Dataset }) {
  const { t } = useTranslation()
  const format = useFormat()
  const wrong = dataset.files.filter((file) => file.report.error_count > 0)
  if (wrong.length === 0) return null
  return wrong.map((file) => (
    <Card key={file.split} title={t('datasets.errorsOf', { file: t(`split.${file.split}`), count: file.report.error_count })} flush>
      <div className="p-3">
        <Notice tone="danger" title={t('datasets.invalid')}>{t('datasets.invalidLead')}</Notice>
      </div>
      <Table label={t('datasets.errors')} head={[t('datasets.line'), t('datasets.column'), t('datasets.reason')]}>
        {file.report.errors.map((error) => (
          <tr key={`${error.line}:${error.column}:${error.reason}`}>
            <Td className="tabular">{format.count(error.line)}</Td>
            <Td className="tabular">{error.column ?? '–'}</Td>
            <Td>{error.reason}</Td>
          </tr>
        ))}
      </Table>
    </Card>
  ))
}

function About({ dataset }: { dataset: Dataset }) {
  const { t } = useTranslation()
  const format = useFormat()
  const statistics = useQuery({ ...datasetStatisticsQuery(dataset.id), enabled: dataset.status === 'ready' }).data
  return (
    <Card title={t('datasets.about')}>
      <Facts
        items={[
          [t('datasets.format'), dataset.format ? t(`format.${dataset.format}`) : '–'],
          [t('datasets.rowsName'), format.count(dataset.rows)],
          [t('common.size'), format.bytes(dataset.size)],
          [t('jobs.created'), format.time(dataset.created_at)],
          [t('common.id'), <Mono key="id">{dataset.id}</Mono>],
          ...(statistics ? [[t('datasets.duplicates'), format.count(statistics.duplicates)] as [string, string]] : []),
        ]}
      />
      {statistics?.files.map(
        (file) =>
          file.statistics && (
            <section key={file.split} className="mt-4">
              <h3 className="text-xs font-medium">{t('datasets.lengths', { file: t(`split.${file.split}`) })}</h3>
              <Histogram stats={file.statistics.characters} />
              {file.tokens && (
                <p className="tabular mt-1 text-xs text-muted">
                  {t('datasets.tokens', { total: format.compact(file.tokens.total), trained: format.compact(file.tokens.trained), tokenizer: file.tokens.tokenizer })}
                </p>
              )}
            </section>
          ),
      )}
    </Card>
  )
}

function Usage({ id }: { id: string }) {
  const { t } = useTranslation()
  return (
    <Card title={t('datasets.usedBy')} flush>
      <Loaded query={useQuery(datasetUsageQuery(id))}>
        {({ jobs, versions }) =>
          jobs.length + versions.length === 0 ? (
            <Empty title={t('datasets.unused')} />
          ) : (
            <ul className="divide-y">
              {jobs.map((job) => (
                <li key={job.id} className="px-4 py-2">
                  <Link to="/jobs/$id" params={{ id: job.id }} className="font-medium hover:underline">
                    {job.name}
                  </Link>
                </li>
              ))}
              {versions.map((version) => (
                <li key={version.id} className="px-4 py-2">
                  {version.name}
                </li>
              ))}
            </ul>
          )
        }
      </Loaded>
    </Card>
  )
}

/** Two new datasets from one: by rows drawn at random, the same with the same seed. */
function Split({ dataset, onClose }: { dataset: Dataset; onClose: () => void }) {
  const { t } = useTranslation()
  const [client, navigate] = [useQueryClient(), useNavigate()]
  const split = useMutation({
    mutationFn: (body: { ratio: number; seed: number }) => api.POST('/datasets/{id}/split', { params: { path: { id: dataset.id } }, body }),
    onSuccess: async ({ data }) => {
      await client.invalidateQueries({ queryKey: ['datasets'] })
      onClose()
      if (data) await navigate({ to: '/data/$id', params: { id: data.train.id } })
    },
  })
  const errors = fieldErrors(split.error)
  function submit(event: FormEvent<HTMLFormElement>) {
    event.preventDefault()
    const form = new FormData(event.currentTarget)
    split.mutate({ ratio: Number(form.get('share')) / 100, seed: Number(form.get('seed')) })
  }
  return (
    <Dialog
      open
      onClose={onClose}
      title={t('datasets.split')}
      description={t('datasets.splitLead')}
      footer={
        <>
          <Button onClick={onClose}>{t('actions.back')}</Button>
          <Button variant="primary" type="submit" form="split" busy={split.isPending}>
            {t('datasets.split')}
          </Button>
        </>
      }
    >
      <form id="split" onSubmit={submit} className="grid gap-3 sm:grid-cols-2">
        <Field label={t('datasets.share')} error={errors['ratio']}>
          {(control) => <Input {...control} name="share" type="number" min={1} max={99} defaultValue={90} />}
        </Field>
        <Field label={t('job.seed')} error={errors['seed']}>
          {(control) => <Input {...control} name="seed" type="number" min={0} defaultValue={42} />}
        </Field>
      </form>
      {split.error && Object.keys(errors).length === 0 && (
        <div className="mt-3">
          <Notice tone="danger" title={split.error.message} />
        </div>
      )}
    </Dialog>
  )
}
