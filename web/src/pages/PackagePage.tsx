import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { Link, useNavigate, useParams, useSearch } from '@tanstack/react-router'
import { Archive, GitBranch, GitFork, MoreHorizontal, Pencil, Play, Plus, RotateCcw, Trash2 } from 'lucide-react'
import { useState } from 'react'
import { useTranslation } from 'react-i18next'
import { api, idempotencyKey } from '@/api/client'
import { compareQuery, packageQuery, versionEstimateQuery, versionsQuery } from '@/api/queries'
import type { Package, Version } from '@/api/types'
import { useFormat } from '@/i18n/useFormat'
import { Estimate } from '@/jobs/Estimate'
import { Ago } from '@/ui/Ago'
import { Button, buttonClass, IconButton } from '@/ui/Button'
import { Card, Empty, Loaded, Mono, Notice, PageHeader, SkeletonRows, Table, Td } from '@/ui/layout'
import { Confirm, Menu, type MenuItem } from '@/ui/overlay'
import { TrainingBadge, VersionBadge } from '@/ui/status'
import { toast } from '@/ui/toast'
import { useTitle } from './useTitle'

export function PackagePage() {
  const { id } = useParams({ from: '/app/packages/$id' })
  return <Loaded query={useQuery(packageQuery(id))} skeleton={<SkeletonRows rows={8} />}>{(one) => <Detail key={one.id} one={one} />}</Loaded>
}

/** What can be done with versions, each followed by what leads on. */
function useActions(packageId: string) {
  const { t } = useTranslation()
  const [client, navigate] = [useQueryClient(), useNavigate()]
  const edit = (version: Version) => navigate({ to: '/packages/$id/edit/$version', params: { id: version.package_id, version: version.id } })
  const key = () => ({ header: { 'Idempotency-Key': idempotencyKey() } })
  const of = (version: Version) => ({ path: { id: version.id } })
  const all = {
    draft: async () => {
      const { data } = await api.POST('/api/training/versions', { body: { package_id: packageId }, params: key() })
      if (data) await edit(data)
    },
    restore: async (version: Version) => {
      const { data } = await api.POST('/api/training/versions/{id}/restore', { params: { ...of(version), ...key() } })
      toast.success({ title: t('version.restored', { name: version.name }) })
      if (data) await edit(data)
    },
    fork: async (version: Version) => {
      const { data } = await api.POST('/api/training/versions/{id}/fork', { params: { ...of(version), ...key() }, body: { package_name: `${version.name}-fork` } })
      if (data) await edit(data)
    },
    launch: async (version: Version) => {
      const { data } = await api.POST('/api/training/versions/{id}/launch', { params: { ...of(version), ...key() } })
      if (data) await navigate({ to: '/jobs/$id', params: { id: data.id } })
    },
    archive: (version: Version) => api.POST('/api/training/versions/{id}/archive', { params: of(version) }),
    delete: (version: Version) => api.DELETE('/api/training/versions/{id}', { params: of(version) }),
  }
  type Name = keyof typeof all
  const run = useMutation({
    mutationFn: async ({ name, version }: { name: Name; version?: Version }) => {
      if (name === 'draft') await all.draft()
      else if (version) await all[name](version)
    },
    onSuccess: async () => {
      await client.invalidateQueries({ queryKey: ['packages'] })
      await client.invalidateQueries({ queryKey: ['jobs'] })
    },
    onError: (error, { name }) => toast.failure(t(`version.${name}Failed`), error),
  })
  return { edit, run }
}

function Detail({ one }: { one: Package }) {
  const { t } = useTranslation()
  const versions = useQuery(versionsQuery(one.id))
  const actions = useActions(one.id)
  const [deleting, setDeleting] = useState<Version | null>(null)
  useTitle(one.name)
  const newest = versions.data?.items.find((version) => version.status === 'published')
  const draft = versions.data?.items.find((version) => version.status === 'draft')
  return (
    <>
      <PageHeader
        above={<Link to="/packages" className="hover:underline">{t('nav.packages')}</Link>}
        title={one.name}
        lead={one.description || undefined}
        actions={
          <>
            {draft ? (
              <Link to="/packages/$id/edit/$version" params={{ id: one.id, version: draft.id }} className={buttonClass()}>
                <Pencil aria-hidden />
                {t('version.editDraft')}
              </Link>
            ) : (
              <Button busy={actions.run.isPending && actions.run.variables.name === 'draft'} onClick={() => actions.run.mutate({ name: 'draft' })}>
                <Plus aria-hidden />
                {t('version.newDraft')}
              </Button>
            )}
            {newest && (
              <Button variant="primary" busy={actions.run.isPending && actions.run.variables.name === 'launch'} onClick={() => actions.run.mutate({ name: 'launch', version: newest })}>
                <Play aria-hidden />
                {t('version.launchOf', { name: `v${newest.version_number}` })}
              </Button>
            )}
          </>
        }
      />
      <div className="flex flex-col gap-3">
        {newest && <VersionEstimate version={newest} />}
        <Card title={t('version.history')} flush>
          <Loaded query={versions}>
            {({ items }) => (items.length === 0 ? <Empty icon={GitBranch} title={t('version.none')}>{t('version.noneLead')}</Empty> : <History versions={items} actions={actions} onDelete={setDeleting} />)}
          </Loaded>
        </Card>
        <Comparison versions={versions.data?.items ?? []} />
      </div>
      <Confirm
        open={deleting !== null}
        onClose={() => setDeleting(null)}
        busy={actions.run.isPending}
        title={t('version.deleteTitle', { name: deleting?.name })}
        description={t('version.deleteLead')}
        action={t('actions.delete')}
        onConfirm={() => deleting && actions.run.mutate({ name: 'delete', version: deleting }, { onSettled: () => setDeleting(null) })}
      />
    </>
  )
}

function VersionEstimate({ version }: { version: Version }) {
  const { t } = useTranslation()
  const { data } = useQuery(versionEstimateQuery(version.id))
  if (!data || (data.status !== 'done' && data.status !== 'failed')) return null
  return (
    <Card title={t('estimate.ofVersion', { name: version.name })}>
      <div className="flex flex-col gap-3">{data.estimate ? <Estimate estimate={data.estimate} /> : <Notice tone="warning" title={data.error ?? t('estimate.none')} />}</div>
    </Card>
  )
}

interface HistoryProps {
  versions: Version[]
  actions: ReturnType<typeof useActions>
  onDelete: (version: Version) => void
}

function History({ versions, actions, onDelete }: HistoryProps) {
  const { t } = useTranslation()
  const format = useFormat()
  const { a, b } = useSearch({ from: '/app/packages/$id' })
  const navigate = useNavigate({ from: '/packages/$id' })
  // The two newest choices are compared.
  const choose = (id: string) => {
    const rest = [a, b].filter((chosen) => chosen !== undefined && chosen !== id)
    const next = [a, b].includes(id) ? rest : [...rest.slice(-1), id]
    void navigate({ search: { a: next[0], b: next[1] }, replace: true, resetScroll: false })
  }
  const menu = (version: Version): MenuItem[] => {
    const run = (name: 'restore' | 'fork' | 'launch' | 'archive') => () => actions.run.mutate({ name, version })
    if (version.status === 'draft') {
      return [
        { label: t('step.edit'), icon: <Pencil aria-hidden />, onSelect: () => void actions.edit(version) },
        { label: t('version.fork'), icon: <GitFork aria-hidden />, onSelect: run('fork') },
        { label: t('version.delete'), icon: <Trash2 aria-hidden />, danger: true, onSelect: () => onDelete(version) },
      ]
    }
    return [
      ...(version.status === 'published' ? [{ label: t('version.launch'), icon: <Play aria-hidden />, onSelect: run('launch') }] : []),
      { label: t('version.restore'), icon: <RotateCcw aria-hidden />, onSelect: run('restore') },
      { label: t('version.fork'), icon: <GitFork aria-hidden />, onSelect: run('fork') },
      ...(version.status === 'published' ? [{ label: t('version.archive'), icon: <Archive aria-hidden />, onSelect: run('archive') }] : []),
    ]
  }
  return (
    <Table label={t('version.history')} head={[<span key="compare">{t('version.compare')}</span>, t('packages.name'), t('jobs.state'), t('version.training'), t('jobs.cost'), t('packages.updated'), <span key="more" className="sr-only">{t('actions.more')}</span>]}>
      {versions.map((version) => (
        <tr key={version.id}>
          <Td>
            <input type="checkbox" aria-label={t('version.choose', { name: version.name })} checked={a === version.id || b === version.id} onChange={() => choose(version.id)} className="block size-4 accent-(--accent)" />
          </Td>
          <Td>
            <p className="font-medium">{version.name}</p>
            {version.change_summary && <p className="max-w-prose text-xs text-muted">{version.change_summary}</p>}
          </Td>
          <Td>
            <VersionBadge status={version.status} />
          </Td>
          <Td>{version.training.status ? <TrainingBadge status={version.training.status} /> : <span className="text-muted">–</span>}</Td>
          <Td className="tabular">{version.cost.actual == null ? '–' : format.money(version.cost.actual)}</Td>
          <Td className="text-muted">
            <Ago at={version.published_at ?? version.updated_at} />
          </Td>
          <Td className="text-right">
            <Menu
              trigger={
                <IconButton label={t('jobs.actionsOf', { name: version.name })}>
                  <MoreHorizontal aria-hidden />
                </IconButton>
              }
              items={menu(version)}
            />
          </Td>
        </tr>
      ))}
    </Table>
  )
}

function Comparison({ versions }: { versions: Version[] }) {
  const { t } = useTranslation()
  const { a, b } = useSearch({ from: '/app/packages/$id' })
  if (versions.length < 2) return null
  return (
    <Card title={t('version.comparison')} flush>
      {a && b ? <Differences a={a} b={b} /> : <p className="p-4 text-muted">{t('version.chooseTwo')}</p>}
    </Card>
  )
}

const written = (value: unknown): string => (value === null || value === undefined ? '–' : typeof value === 'string' ? value : JSON.stringify(value))

function Differences({ a, b }: { a: string; b: string }) {
  const { t } = useTranslation()
  return (
    <Loaded query={useQuery(compareQuery(a, b))}>
      {(comparison) =>
        comparison.changes.length === 0 ? (
          <Empty title={t('version.same')} />
        ) : (
          <Table label={t('version.comparison')} head={[t('version.field'), comparison.a.name, comparison.b.name]}>
            {comparison.changes.map((change) => (
              <tr key={change.path}>
                <Td className="align-top">
                  <Mono>{change.path}</Mono>
                </Td>
                <Td className="align-top">
                  <Mono className="text-danger">{written(change.before)}</Mono>
                </Td>
                <Td className="align-top">
                  <Mono className="text-success">{written(change.after)}</Mono>
                </Td>
              </tr>
            ))}
          </Table>
        )
      }
    </Loaded>
  )
}
