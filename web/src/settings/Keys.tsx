import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { KeyRound, Plus } from 'lucide-react'
import { useState, type FormEvent } from 'react'
import { useTranslation } from 'react-i18next'
import { api, fieldErrors, type Schemas } from '@/api/client'
import { keysQuery, meQuery } from '@/api/queries'
import { useFormat } from '@/i18n/useFormat'
import { Ago } from '@/ui/Ago'
import { Button } from '@/ui/Button'
import { Field, Input, Select } from '@/ui/form'
import { Card, Empty, Loaded, Mono, Notice, Table, Td } from '@/ui/layout'
import { Confirm, Dialog } from '@/ui/overlay'
import { Badge } from '@/ui/status'
import { toast } from '@/ui/toast'
import { Secret } from './Secret'

type Key = Schemas['KeyView']
type Scope = Schemas['Scope']

const SCOPES: Scope[] = [
  'jobs:read', 'jobs:write', 'datasets:read', 'datasets:write', 'models:read', 'models:write', 'packages:read', 'packages:write', 'artifacts:read',
  'costs:read', 'notifications:read', 'notifications:write', 'webhooks:read', 'webhooks:write', 'keys:read', 'keys:write', 'audit:read', 'admin',
]
const DAYS = [7, 30, 90, 365] as const

const isPast = (at: string): boolean => new Date(at).getTime() < Date.now()

export function Keys() {
  const { t } = useTranslation()
  const client = useQueryClient()
  const [making, setMaking] = useState(false)
  const [made, setMade] = useState<string | null>(null)
  const [revoking, setRevoking] = useState<Key | null>(null)
  const revoke = useMutation({
    mutationFn: (id: string) => api.DELETE('/api/keys/{id}', { params: { path: { id } } }),
    onSuccess: () => client.invalidateQueries({ queryKey: keysQuery.queryKey }),
    onError: (error) => toast.failure(t('keys.revokeFailed'), error),
    onSettled: () => setRevoking(null),
  })
  return (
    <Card
      title={t('settings.keys')}
      flush
      actions={
        <Button size="sm" variant="primary" onClick={() => setMaking(true)}>
          <Plus aria-hidden />
          {t('keys.new')}
        </Button>
      }
    >
      <Loaded query={useQuery(keysQuery)}>{({ items }) => (items.length === 0 ? <Empty icon={KeyRound} title={t('keys.none')} /> : <List keys={items} onRevoke={setRevoking} />)}</Loaded>
      {making && (
        <NewKey
          onClose={() => setMaking(false)}
          onMade={(key) => {
            setMaking(false)
            setMade(key)
          }}
        />
      )}
      {made && <Secret title={t('keys.made')} value={made} onClose={() => setMade(null)} />}
      <Confirm open={revoking !== null} onClose={() => setRevoking(null)} busy={revoke.isPending} title={t('keys.revokeTitle', { name: revoking?.name })} description={t('keys.revokeLead')} action={t('keys.revoke')} onConfirm={() => revoking && revoke.mutate(revoking.id)} />
    </Card>
  )
}

function List({ keys, onRevoke }: { keys: Key[]; onRevoke: (key: Key) => void }) {
  const { t } = useTranslation()
  const format = useFormat()
  const mine = useQuery(meQuery).data?.key_prefix
  const state = (key: Key) => {
    if (key.revoked_at) return <Badge>{t('keys.revoked')}</Badge>
    if (key.expires_at && isPast(key.expires_at)) return <Badge tone="warning">{t('keys.expired')}</Badge>
    return mine === key.prefix ? <Badge tone="accent">{t('keys.this')}</Badge> : <Badge tone="success">{t('keys.active')}</Badge>
  }
  return (
    <Table label={t('settings.keys')} head={[t('packages.name'), t('keys.prefix'), t('keys.scopes'), t('keys.lastUsed'), t('keys.expires'), t('jobs.state'), <span key="more" className="sr-only">{t('actions.more')}</span>]}>
      {keys.map((key) => (
        <tr key={key.id}>
          <Td className="font-medium">{key.name}</Td>
          <Td>
            <Mono>{key.prefix}…</Mono>
          </Td>
          <Td className="max-w-64 text-xs text-muted">{key.scopes.includes('*') ? t('keys.everything') : key.scopes.join(', ')}</Td>
          <Td className="text-muted">{key.last_used_at ? <Ago at={key.last_used_at} /> : t('keys.never')}</Td>
          <Td className="whitespace-nowrap text-muted">{key.expires_at ? format.day(key.expires_at) : t('keys.never')}</Td>
          <Td>{state(key)}</Td>
          <Td className="text-right">
            {!key.revoked_at && (
              <Button size="sm" variant="danger" onClick={() => onRevoke(key)} aria-label={t('keys.revokeOf', { name: key.name })}>
                {t('keys.revoke')}
              </Button>
            )}
          </Td>
        </tr>
      ))}
    </Table>
  )
}

function NewKey({ onClose, onMade }: { onClose: () => void; onMade: (key: string) => void }) {
  const { t } = useTranslation()
  const client = useQueryClient()
  const [all, setAll] = useState(true)
  const make = useMutation({
    mutationFn: (body: Schemas['CreateKey']) => api.POST('/api/keys', { body }),
    onSuccess: async ({ data }) => {
      await client.invalidateQueries({ queryKey: keysQuery.queryKey })
      if (data) onMade(data.key)
    },
  })
  const errors = fieldErrors(make.error)
  function submit(event: FormEvent<HTMLFormElement>) {
    event.preventDefault()
    const form = new FormData(event.currentTarget)
    const days = Number(form.get('days'))
    const scopes = all ? undefined : (form.getAll('scope') as Scope[])
    make.mutate({ name: String(form.get('name')).trim(), scopes, expires_in: days ? days * 86_400 : undefined })
  }
  return (
    <Dialog
      open
      onClose={onClose}
      title={t('keys.new')}
      description={t('keys.newLead')}
      footer={
        <>
          <Button onClick={onClose}>{t('actions.back')}</Button>
          <Button variant="primary" type="submit" form="key" busy={make.isPending}>
            {t('keys.create')}
          </Button>
        </>
      }
    >
      <form id="key" onSubmit={submit} className="flex flex-col gap-3">
        <Field label={t('packages.name')} error={errors['name']} required>
          {(control) => <Input {...control} name="name" required maxLength={100} autoFocus />}
        </Field>
        <Field label={t('keys.expires')} error={errors['expires_in']}>
          {(control) => (
            <Select {...control} name="days" defaultValue="90">
              {DAYS.map((days) => (
                <option key={days} value={days}>
                  {t('costs.days', { count: days })}
                </option>
              ))}
              <option value="0">{t('keys.never')}</option>
            </Select>
          )}
        </Field>
        <fieldset className="flex flex-col gap-2">
          <legend className="mb-1 text-xs font-medium">{t('keys.scopes')}</legend>
          <label className="flex items-center gap-2">
            <input type="checkbox" checked={all} onChange={(event) => setAll(event.target.checked)} className="size-4 accent-(--accent)" />
            {t('keys.everything')}
          </label>
          {!all && (
            <div className="grid grid-cols-2 gap-1.5">
              {SCOPES.map((scope) => (
                <label key={scope} className="flex items-center gap-2">
                  <input type="checkbox" name="scope" value={scope} className="size-4 accent-(--accent)" />
                  <Mono>{scope}</Mono>
                </label>
              ))}
            </div>
          )}
        </fieldset>
        {make.error && Object.keys(errors).length === 0 && <Notice tone="danger" title={make.error.message} />}
      </form>
    </Dialog>
  )
}
