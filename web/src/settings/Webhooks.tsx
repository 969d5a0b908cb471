import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query'
import { Plus, Send, Webhook as WebhookIcon } from 'lucide-react'
import { useState, type FormEvent } from 'react'
import { useTranslation } from 'react-i18next'
import { api, fieldErrors, type Schemas } from '@/api/client'
import { deliveriesQuery, webhooksQuery } from '@/api/queries'
import { Ago } from '@/ui/Ago'
import { Button } from '@/ui/Button'
import { Field, Input } from '@/ui/form'
import { Card, Empty, Loaded, Mono, Notice, Table, Td } from '@/ui/layout'
import { Confirm, Dialog } from '@/ui/overlay'
import { Badge, type Tone } from '@/ui/status'
import { toast } from '@/ui/toast'
import { Secret } from './Secret'

type Webhook = Schemas['WebhookView']

const KINDS: Schemas['Kind'][] = [
  'training.job.succeeded', 'training.job.failed', 'training.job.cancelled', 'training.job.paused', 'training.job.budget_alert',
  'training.job.dead_letter', 'dataset.invalid', 'package.version.published', 'webhook.disabled',
]

export function Webhooks() {
  const { t } = useTranslation()
  const [making, setMaking] = useState(false)
  const [secret, setSecret] = useState<string | null>(null)
  return (
    <div className="flex flex-col gap-3">
      <Card
        title={t('settings.webhooks')}
        flush
        actions={
          <Button size="sm" variant="primary" onClick={() => setMaking(true)}>
            <Plus aria-hidden />
            {t('webhooks.new')}
          </Button>
        }
      >
        <Loaded query={useQuery(webhooksQuery)}>
          {({ items }) =>
            items.length === 0 ? (
              <Empty icon={WebhookIcon} title={t('webhooks.none')}>
                {t('webhooks.noneLead')}
              </Empty>
            ) : (
              <ul className="divide-y">
                {items.map((hook) => (
                  <Item key={hook.id} hook={hook} onSecret={setSecret} />
                ))}
              </ul>
            )
          }
        </Loaded>
      </Card>
      {making && (
        <NewWebhook
          onClose={() => setMaking(false)}
          onMade={(made) => {
            setMaking(false)
            setSecret(made)
          }}
        />
      )}
      {secret && <Secret title={t('webhooks.secret')} value={secret} onClose={() => setSecret(null)} />}
    </div>
  )
}

function Item({ hook, onSecret }: { hook: Webhook; onSecret: (secret: string) => void }) {
  const { t } = useTranslation()
  const client = useQueryClient()
  const [open, setOpen] = useState(false)
  const [asking, setAsking] = useState(false)
  const params = { path: { id: hook.id } }
  const on = {
    onSuccess: () => client.invalidateQueries({ queryKey: ['webhooks'] }),
    onError: (error: unknown) => toast.failure(t('webhooks.failed'), error),
  }
  const test = useMutation({ mutationFn: () => api.POST('/api/webhooks/{id}/test', { params }), ...on, onSettled: () => setOpen(true) })
  const toggle = useMutation({ mutationFn: () => api.PATCH('/api/webhooks/{id}', { params, body: { enabled: !hook.enabled } }), ...on })
  const rotate = useMutation({
    mutationFn: () => api.POST('/api/webhooks/{id}/rotate', { params }),
    ...on,
    onSuccess: ({ data }) => void (data && onSecret(data.secret)),
  })
  const remove = useMutation({ mutationFn: () => api.DELETE('/api/webhooks/{id}', { params }), ...on, onSettled: () => setAsking(false) })
  return (
    <li className="px-4 py-3">
      <div className="flex flex-wrap items-center gap-2">
        <div className="min-w-0 flex-1">
          <p className="font-medium break-all">{hook.url}</p>
          <p className="text-xs text-muted">{hook.events.length === 0 || hook.events.length >= KINDS.length ? t('webhooks.everything') : hook.events.join(', ')}</p>
        </div>
        {hook.enabled ? <Badge tone="success">{t('webhooks.enabled')}</Badge> : <Badge tone="warning">{t('webhooks.disabled')}</Badge>}
        <Button size="sm" busy={test.isPending} onClick={() => test.mutate()}>
          <Send aria-hidden />
          {t('webhooks.test')}
        </Button>
        <Button size="sm" aria-expanded={open} onClick={() => setOpen(!open)}>
          {t('webhooks.deliveries')}
        </Button>
        <Button size="sm" busy={toggle.isPending} onClick={() => toggle.mutate()}>
          {t(hook.enabled ? 'webhooks.disable' : 'webhooks.enable')}
        </Button>
        <Button size="sm" busy={rotate.isPending} onClick={() => rotate.mutate()}>
          {t('webhooks.rotate')}
        </Button>
        <Button size="sm" variant="danger" onClick={() => setAsking(true)}>
          {t('actions.delete')}
        </Button>
      </div>
      {hook.disabled_reason && <p className="mt-1 text-xs text-warning">{hook.disabled_reason}</p>}
      {open && <Deliveries id={hook.id} />}
      <Confirm open={asking} onClose={() => setAsking(false)} busy={remove.isPending} title={t('webhooks.deleteTitle')} description={hook.url} action={t('actions.delete')} onConfirm={() => remove.mutate()} />
    </li>
  )
}

const TONES: Record<Schemas['DeliveryStatus'], Tone> = { pending: 'info', delivered: 'success', failed: 'danger' }

function Deliveries({ id }: { id: string }) {
  const { t } = useTranslation()
  const client = useQueryClient()
  const again = useMutation({
    mutationFn: (delivery_id: string) => api.POST('/api/webhooks/{id}/deliveries/{delivery_id}/redeliver', { params: { path: { id, delivery_id } } }),
    onSuccess: () => client.invalidateQueries({ queryKey: ['webhooks', id] }),
    onError: (error) => toast.failure(t('webhooks.failed'), error),
  })
  return (
    <div className="mt-3 rounded-lg border">
      <Loaded query={useQuery(deliveriesQuery(id))}>
        {({ items }) =>
          items.length === 0 ? (
            <Empty title={t('webhooks.noDeliveries')} />
          ) : (
            <Table label={t('webhooks.deliveries')} head={[t('webhooks.event'), t('jobs.state'), t('webhooks.attempts'), t('webhooks.answer'), t('jobs.created'), <span key="more" className="sr-only">{t('actions.more')}</span>]}>
              {items.map((one) => (
                <tr key={one.id}>
                  <Td>
                    <Mono>{one.event_type}</Mono>
                  </Td>
                  <Td>
                    <Badge tone={TONES[one.status]}>{t(`delivery.${one.status}`)}</Badge>
                  </Td>
                  <Td className="tabular">{one.attempts}</Td>
                  <Td className="max-w-72 text-xs text-muted">{[one.response_status, one.last_error].filter(Boolean).join(' · ') || '–'}</Td>
                  <Td className="text-muted">
                    <Ago at={one.created_at} />
                  </Td>
                  <Td className="text-right">
                    <Button size="sm" onClick={() => again.mutate(one.id)}>
                      {t('webhooks.again')}
                    </Button>
                  </Td>
                </tr>
              ))}
            </Table>
          )
        }
      </Loaded>
    </div>
  )
}

function NewWebhook({ onClose, onMade }: { onClose: () => void; onMade: (secret: string) => void }) {
  const { t } = useTranslation()
  const client = useQueryClient()
  const make = useMutation({
    mutationFn: (body: Schemas['CreateWebhook']) => api.POST('/api/webhooks', { body }),
    onSuccess: async ({ data }) => {
      await client.invalidateQueries({ queryKey: webhooksQuery.queryKey })
      if (data) onMade(data.secret)
    },
  })
  const errors = fieldErrors(make.error)
  function submit(event: FormEvent<HTMLFormElement>) {
    event.preventDefault()
    const form = new FormData(event.currentTarget)
    const events = form.getAll('event') as string[]
    make.mutate({ url: String(form.get('url')).trim(), events: events.length > 0 ? events : undefined })
  }
  return (
    <Dialog
      open
      onClose={onClose}
      title={t('webhooks.new')}
      description={t('webhooks.newLead')}
      footer={
        <>
          <Button onClick={onClose}>{t('actions.back')}</Button>
          <Button variant="primary" type="submit" form="webhook" busy={make.isPending}>
            {t('webhooks.create')}
          </Button>
        </>
      }
    >
      <form id="webhook" onSubmit={submit} className="flex flex-col gap-3">
        <Field label="URL" error={errors['url']} required>
          {(control) => <Input {...control} name="url" type="url" required autoFocus placeholder="https://" />}
        </Field>
        <fieldset>
          <legend className="mb-1 text-xs font-medium">{t('webhooks.events')}</legend>
          <div className="grid gap-1.5 sm:grid-cols-2">
            {KINDS.map((kind) => (
              <label key={kind} className="flex items-center gap-2">
                <input type="checkbox" name="event" value={kind} className="size-4 accent-(--accent)" />
                {t(`kind.${kind.replaceAll('.', '_')}`)}
              </label>
            ))}
          </div>
        </fieldset>
        {make.error && Object.keys(errors).length === 0 && <Notice tone="danger" title={make.error.message} />}
      </form>
    </Dialog>
  )
}
