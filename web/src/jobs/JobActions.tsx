import { useMutation, useQueryClient } from '@tanstack/react-query'
import { useNavigate } from '@tanstack/react-router'
import { Copy, MoreHorizontal, Pause, Play, Square, Wallet } from 'lucide-react'
import { useState, type FormEvent } from 'react'
import { useTranslation } from 'react-i18next'
import { api, idempotencyKey } from '@/api/client'
import { canCancel, canPause, canResume, type Job } from '@/api/types'
import { Button, IconButton } from '@/ui/Button'
import { Field, Input } from '@/ui/form'
import { Confirm, Dialog, Menu } from '@/ui/overlay'
import { toast } from '@/ui/toast'
import { clone } from './clone'

type Wish = 'pause' | 'resume' | 'cancel'

export function JobActions({ job }: { job: Job }) {
  const { t } = useTranslation()
  const [client, navigate] = [useQueryClient(), useNavigate()]
  const [asking, setAsking] = useState<'cancel' | 'budget' | null>(null)
  const params = { path: { id: job.id } }

  const wish = useMutation({
    mutationFn: (what: Wish) => api.POST(`/training/jobs/{id}/${what}`, { params }),
    onSuccess: ({ data }) => {
      if (data) client.setQueryData(['jobs', 'one', job.id], data)
      void client.invalidateQueries({ queryKey: ['jobs', 'recent'] })
    },
    onError: (error, what) => toast.failure(t(`job.${what}Failed`), error),
    onSettled: () => setAsking(null),
  })
  const again = useMutation({
    mutationFn: () => api.POST('/training/jobs', { body: clone(job), params: { header: { 'Idempotency-Key': idempotencyKey() } } }),
    onSuccess: ({ data }) => void (data && navigate({ to: '/jobs/$id', params: { id: data.id } })),
    onError: (error) => toast.failure(t('jobs.clone'), error),
  })

  return (
    <>
      {canResume(job.state) && (
        <Button variant="primary" busy={wish.isPending} onClick={() => wish.mutate('resume')}>
          <Play aria-hidden />
          {t('job.resume')}
        </Button>
      )}
      {canPause(job.state) && (
        <Button busy={wish.isPending && wish.variables === 'pause'} onClick={() => wish.mutate('pause')}>
          <Pause aria-hidden />
          {t('job.pause')}
        </Button>
      )}
      {canCancel(job.state) && (
        <Button variant="danger" onClick={() => setAsking('cancel')}>
          <Square aria-hidden />
          {t('jobs.cancel')}
        </Button>
      )}
      <Menu
        trigger={
          <IconButton label={t('actions.more')}>
            <MoreHorizontal aria-hidden />
          </IconButton>
        }
        items={[
          { label: t('jobs.clone'), icon: <Copy aria-hidden />, onSelect: () => again.mutate() },
          ...(canCancel(job.state) ? [{ label: t('job.changeBudget'), icon: <Wallet aria-hidden />, onSelect: () => setAsking('budget') }] : []),
        ]}
      />
      <Confirm open={asking === 'cancel'} onClose={() => setAsking(null)} busy={wish.isPending} title={t('jobs.cancelTitle', { count: 1 })} description={t('jobs.cancelLead')} action={t('jobs.cancel')} onConfirm={() => wish.mutate('cancel')} />
      {asking === 'budget' && <Budget job={job} onClose={() => setAsking(null)} />}
    </>
  )
}

function Budget({ job, onClose }: { job: Job; onClose: () => void }) {
  const { t } = useTranslation()
  const client = useQueryClient()
  const save = useMutation({
    mutationFn: (limit: number | null) => api.PATCH('/training/jobs/{id}', { params: { path: { id: job.id } }, body: { budget_limit: limit } }),
    onSuccess: async () => {
      await client.invalidateQueries({ queryKey: ['jobs', 'one', job.id] })
      onClose()
    },
  })
  function submit(event: FormEvent<HTMLFormElement>) {
    event.preventDefault()
    const text = String(new FormData(event.currentTarget).get('limit')).trim()
    save.mutate(text === '' ? null : Number(text))
  }
  return (
    <Dialog
      open
      onClose={onClose}
      title={t('job.changeBudget')}
      description={t('job.budgetLead')}
      footer={
        <>
          <Button onClick={onClose}>{t('actions.back')}</Button>
          <Button variant="primary" type="submit" form="budget" busy={save.isPending}>
            {t('actions.save')}
          </Button>
        </>
      }
    >
      <form id="budget" onSubmit={submit}>
        <Field label={t('job.budgetLimit', { currency: job.cost.currency })} error={save.error?.message}>
          {(control) => <Input {...control} name="limit" type="number" min={0.01} step={0.01} defaultValue={job.cost.budget_limit ?? ''} />}
        </Field>
      </form>
    </Dialog>
  )
}
