import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { Link } from '@tanstack/react-router'
import { Box, Download, Layers } from 'lucide-react'
import { useState } from 'react'
import { useTranslation } from 'react-i18next'
import { api } from '@/api/client'
import { artifactsQuery, modelsQuery } from '@/api/queries'
import { useFormat } from '@/i18n/useFormat'
import { Downloads } from '@/jobs/Downloads'
import { Ago } from '@/ui/Ago'
import { Button } from '@/ui/Button'
import { Input } from '@/ui/form'
import { Card, Empty, Loaded, Mono, PageHeader, Table, Td } from '@/ui/layout'
import { Confirm, Dialog } from '@/ui/overlay'
import { Badge } from '@/ui/status'
import { toast } from '@/ui/toast'
import { Hub } from '@/wizard/ModelStep'
import type { Artifact } from '@/api/types'
import { useTitle } from './useTitle'

export function ModelsPage() {
  const { t } = useTranslation()
  const [fetching, setFetching] = useState(false)
  useTitle(t('nav.models'))
  const button = (
    <Button onClick={() => setFetching(true)}>
      <Download aria-hidden />
      {t('model.fromHub')}
    </Button>
  )
  return (
    <>
      <PageHeader title={t('nav.models')} lead={t('models.lead')} actions={button} />
      <div className="flex flex-col gap-3">
        <BaseModels />
        <Artifacts />
      </div>
      {fetching && <FromHub onClose={() => setFetching(false)} />}
    </>
  )
}

function BaseModels() {
  const { t } = useTranslation()
  const format = useFormat()
  return (
    <Card title={t('models.base')} flush>
      <Loaded query={useQuery(modelsQuery)}>
        {({ items }) =>
          items.length === 0 ? (
            <Empty icon={Box} title={t('model.none')}>
              {t('model.noneLead')}
            </Empty>
          ) : (
            <Table label={t('models.base')} head={[t('packages.name'), t('models.architecture'), t('models.parameters'), t('models.context'), t('common.size'), t('job.revision'), t('jobs.created')]}>
              {items.map((model) => (
                <tr key={`${model.name}@${model.revision}`}>
                  <Td className="font-medium">
                    {model.name} {model.status === 'uploading' && <Badge tone="info">{t('datasetStatus.uploading')}</Badge>}
                  </Td>
                  <Td className="text-muted">{model.info?.architecture ?? '–'}</Td>
                  <Td className="tabular">{model.info ? format.compact(model.info.parameters) : '–'}</Td>
                  <Td className="tabular">{model.info ? format.count(model.info.context_length) : '–'}</Td>
                  <Td className="tabular whitespace-nowrap">{format.bytes(model.size)}</Td>
                  <Td>
                    <Mono className="text-muted">{model.revision.slice(0, 12)}</Mono>
                  </Td>
                  <Td className="text-muted">
                    <Ago at={model.created_at} />
                  </Td>
                </tr>
              ))}
            </Table>
          )
        }
      </Loaded>
    </Card>
  )
}

function Artifacts() {
  const { t } = useTranslation()
  const format = useFormat()
  const client = useQueryClient()
  const [opened, setOpened] = useState<Artifact | null>(null)
  const [deleting, setDeleting] = useState<Artifact | null>(null)
  const remove = useMutation({
    mutationFn: (id: string) => api.DELETE('/api/artifacts/{id}', { params: { path: { id } } }),
    onSuccess: () => client.invalidateQueries({ queryKey: ['artifacts'] }),
    onError: (error) => toast.failure(t('models.deleteFailed'), error),
    onSettled: () => setDeleting(null),
  })
  const loss = (artifact: Artifact) => {
    const value = (artifact.metrics as Record<string, unknown>)['eval_loss']
    return format.metric(typeof value === 'number' ? value : null)
  }
  return (
    <Card title={t('models.artifacts')} flush>
      <Loaded query={useQuery(artifactsQuery)}>
        {({ items }) =>
          items.length === 0 ? (
            <Empty icon={Layers} title={t('models.noArtifacts')}>
              {t('models.noArtifactsLead')}
            </Empty>
          ) : (
            <Table label={t('models.artifacts')} head={[t('packages.name'), t('models.kind'), t('models.madeFrom'), t('metric.eval_loss'), t('common.size'), t('jobs.created'), <span key="more" className="sr-only">{t('actions.more')}</span>]}>
              {items.map((artifact) => (
                <tr key={artifact.id}>
                  <Td>
                    <Link to="/jobs/$id" params={{ id: artifact.job_id }} className="font-medium hover:underline">
                      {artifact.name}
                    </Link>
                  </Td>
                  <Td>
                    <Badge>{t(`artifact.${artifact.kind}`)}</Badge>
                  </Td>
                  <Td className="text-muted">{artifact.base_model}</Td>
                  <Td className="tabular">{loss(artifact)}</Td>
                  <Td className="tabular whitespace-nowrap">{format.bytes(artifact.size)}</Td>
                  <Td className="text-muted">
                    <Ago at={artifact.created_at} />
                  </Td>
                  <Td className="flex justify-end gap-1">
                    <Button size="sm" onClick={() => setOpened(artifact)} aria-label={t('common.downloadOf', { name: artifact.name })}>
                      <Download aria-hidden />
                      {t('common.download')}
                    </Button>
                    <Button size="sm" variant="danger" onClick={() => setDeleting(artifact)} aria-label={t('models.deleteOf', { name: artifact.name })}>
                      {t('actions.delete')}
                    </Button>
                  </Td>
                </tr>
              ))}
            </Table>
          )
        }
      </Loaded>
      {opened && (
        <Dialog open wide onClose={() => setOpened(null)} title={opened.name}>
          <div className="mb-3">
            <Downloads job={opened.job_id} />
          </div>
        </Dialog>
      )}
      <Confirm open={deleting !== null} onClose={() => setDeleting(null)} busy={remove.isPending} title={t('models.deleteTitle', { name: deleting?.name })} description={t('models.deleteLead')} action={t('actions.delete')} onConfirm={() => deleting && remove.mutate(deleting.id)} />
    </Card>
  )
}

function FromHub({ onClose }: { onClose: () => void }) {
  const { t } = useTranslation()
  const [search, setSearch] = useState('')
  return (
    <Dialog open wide onClose={onClose} title={t('model.fromHub')} description={t('model.hubLead')}>
      <div className="mb-4 flex min-h-64 flex-col gap-3">
        <Input autoFocus type="search" aria-label={t('model.search')} placeholder={t('model.search')} value={search} onChange={(event) => setSearch(event.target.value)} />
        <Hub search={search} />
      </div>
    </Dialog>
  )
}
