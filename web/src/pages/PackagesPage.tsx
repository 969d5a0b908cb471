import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { Link, useNavigate, useRouterState, useSearch } from '@tanstack/react-router'
import { Package, Plus, Search } from 'lucide-react'
import { useEffect, useRef, useState, type FormEvent } from 'react'
import { useTranslation } from 'react-i18next'
import { api, ApiError, fieldErrors, idempotencyKey } from '@/api/client'
import { packagesQuery } from '@/api/queries'
import { useHotkeys } from '@/lib/hotkeys'
import { Ago } from '@/ui/Ago'
import { Button } from '@/ui/Button'
import { Field, Input, Textarea } from '@/ui/form'
import { Card, Empty, Loaded, Notice, PageHeader, Table, Td } from '@/ui/layout'
import { Dialog } from '@/ui/overlay'
import { Badge } from '@/ui/status'
import { useTitle } from './useTitle'

export function PackagesPage() {
  const { t } = useTranslation()
  const { q } = useSearch({ from: '/app/packages' })
  const navigate = useNavigate({ from: '/packages' })
  const hash = useRouterState({ select: (state) => state.location.hash })
  const query = useQuery(packagesQuery(q ?? ''))
  const [making, setMaking] = useState(false)
  const find = useRef<HTMLInputElement>(null)
  useTitle(t('nav.packages'))
  useHotkeys({ n: () => setMaking(true), '/': () => find.current?.focus() })
  useEffect(() => {
    if (hash === 'new') setMaking(true)
  }, [hash])
  const button = (
    <Button variant="primary" onClick={() => setMaking(true)}>
      <Plus aria-hidden />
      {t('packages.new')}
    </Button>
  )
  return (
    <>
      <PageHeader title={t('nav.packages')} lead={t('packages.lead')} actions={button} />
      <div className="relative mb-3 w-64 max-w-full">
        <Search aria-hidden className="pointer-events-none absolute top-2 left-2.5 size-4 text-muted" />
        <Input ref={find} type="search" aria-label={t('packages.find')} placeholder={t('packages.find')} value={q ?? ''} onChange={(event) => void navigate({ search: { q: event.target.value || undefined }, replace: true })} className="pl-8" />
      </div>
      <Card flush>
        <Loaded query={query}>
          {({ items }) =>
            items.length === 0 ? (
              <Empty icon={Package} title={t(q ? 'packages.noMatch' : 'packages.none')} action={!q && button}>
                {!q && t('packages.noneLead')}
              </Empty>
            ) : (
              <Table label={t('nav.packages')} head={[t('packages.name'), t('packages.published'), t('packages.versions'), t('packages.updated')]}>
                {items.map((one) => (
                  <tr key={one.id}>
                    <Td>
                      <Link to="/packages/$id" params={{ id: one.id }} className="font-medium hover:underline">
                        {one.name}
                      </Link>
                      {one.description && <p className="max-w-prose truncate text-xs text-muted">{one.description}</p>}
                    </Td>
                    <Td>{one.latest_published_version > 0 ? <Badge tone="success">v{one.latest_published_version}</Badge> : <span className="text-muted">–</span>}</Td>
                    <Td className="tabular">{one.version_count}</Td>
                    <Td className="text-muted">
                      <Ago at={one.updated_at} />
                    </Td>
                  </tr>
                ))}
              </Table>
            )
          }
        </Loaded>
      </Card>
      {making && (
        <NewPackage
          onClose={() => {
            setMaking(false)
            if (hash) void navigate({ to: '/packages', replace: true })
          }}
        />
      )}
    </>
  )
}

function NewPackage({ onClose }: { onClose: () => void }) {
  const { t } = useTranslation()
  const [client, navigate] = [useQueryClient(), useNavigate()]
  // The same keys at another try: a package that was made is not made twice.
  const [keys] = useState(() => [idempotencyKey(), idempotencyKey()] as const)
  const make = useMutation({
    mutationFn: async (body: { name: string; description: string }) => {
      const made = await api.POST('/api/training/packages', { body, params: { header: { 'Idempotency-Key': `${keys[0]}-${body.name}` } } })
      const package_id = made.data?.id ?? ''
      const draft = await api.POST('/api/training/versions', { body: { package_id }, params: { header: { 'Idempotency-Key': `${keys[1]}-${body.name}` } } })
      return { id: package_id, version: draft.data?.id ?? '' }
    },
    onSuccess: async (params) => {
      await client.invalidateQueries({ queryKey: ['packages'] })
      await navigate({ to: '/packages/$id/edit/$version', params })
    },
  })
  const errors = fieldErrors(make.error)
  const taken = make.error instanceof ApiError && make.error.status === 409 ? make.error.message : undefined
  function submit(event: FormEvent<HTMLFormElement>) {
    event.preventDefault()
    const form = new FormData(event.currentTarget)
    make.mutate({ name: String(form.get('name')).trim(), description: String(form.get('description')).trim() })
  }
  return (
    <Dialog
      open
      onClose={onClose}
      title={t('packages.new')}
      description={t('packages.newLead')}
      footer={
        <>
          <Button onClick={onClose}>{t('actions.back')}</Button>
          <Button variant="primary" type="submit" form="package" busy={make.isPending}>
            {t('packages.create')}
          </Button>
        </>
      }
    >
      <form id="package" onSubmit={submit} className="flex flex-col gap-3">
        <Field label={t('packages.name')} help={t('packages.nameHelp')} error={errors['name'] ?? taken} required>
          {(control) => <Input {...control} name="name" required maxLength={100} autoFocus placeholder="modern-english" />}
        </Field>
        <Field label={t('packages.description')} error={errors['description']}>
          {(control) => <Textarea {...control} name="description" maxLength={2000} />}
        </Field>
        {make.error && !taken && Object.keys(errors).length === 0 && <Notice tone="danger" title={make.error.message} />}
      </form>
    </Dialog>
  )
}
