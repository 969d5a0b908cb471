import { useInfiniteQuery, useMutation, useQueryClient } from '@tanstack/react-query'
import { Link } from '@tanstack/react-router'
import { Bell, CheckCheck, Trash2 } from 'lucide-react'
import { useState } from 'react'
import { useTranslation } from 'react-i18next'
import { api } from '@/api/client'
import { notificationsQuery } from '@/api/queries'
import type { Notification } from '@/api/types'
import { cn } from '@/lib/cn'
import { Ago } from '@/ui/Ago'
import { Button, IconButton } from '@/ui/Button'
import { Segmented } from '@/ui/form'
import { Card, Empty, Loaded, PageHeader } from '@/ui/layout'
import { toast } from '@/ui/toast'
import { useTitle } from './useTitle'

const DOTS = { info: 'bg-info', warning: 'bg-warning', error: 'bg-danger' } as const

export function NotificationsPage() {
  const { t } = useTranslation()
  const client = useQueryClient()
  const [unread, setUnread] = useState(false)
  const query = useInfiniteQuery(notificationsQuery(unread))
  useTitle(t('nav.notifications'))
  const done = {
    onSuccess: () => client.invalidateQueries({ queryKey: ['notifications'] }),
    onError: (error: unknown) => toast.failure(t('notifications.failed'), error),
  }
  const readAll = useMutation({ mutationFn: () => api.POST('/api/notifications/read'), ...done })
  const read = useMutation({ mutationFn: (id: string) => api.POST('/api/notifications/{id}/read', { params: { path: { id } } }), ...done })
  const remove = useMutation({ mutationFn: (id: string) => api.DELETE('/api/notifications/{id}', { params: { path: { id } } }), ...done })
  return (
    <>
      <PageHeader
        title={t('nav.notifications')}
        lead={t('notifications.lead')}
        actions={
          <>
            <Segmented label={t('notifications.show')} value={unread ? 'unread' : 'all'} onChange={(value) => setUnread(value === 'unread')} options={[{ value: 'all', label: t('notifications.all') }, { value: 'unread', label: t('notifications.unread') }]} />
            <Button busy={readAll.isPending} onClick={() => readAll.mutate()}>
              <CheckCheck aria-hidden />
              {t('notifications.readAll')}
            </Button>
          </>
        }
      />
      <Card flush>
        <Loaded query={query}>
          {({ pages }) => {
            const items = pages.flatMap((page) => page.items)
            return items.length === 0 ? (
              <Empty icon={Bell} title={t(unread ? 'notifications.noneUnread' : 'notifications.none')} />
            ) : (
              <ul className="divide-y">
                {items.map((item) => (
                  <Item key={item.id} item={item} onRead={() => read.mutate(item.id)} onRemove={() => remove.mutate(item.id)} />
                ))}
              </ul>
            )
          }}
        </Loaded>
        {query.hasNextPage && (
          <div className="border-t p-3 text-center">
            <Button size="sm" busy={query.isFetchingNextPage} onClick={() => void query.fetchNextPage()}>
              {t('actions.loadMore')}
            </Button>
          </div>
        )}
      </Card>
    </>
  )
}

function Item({ item, onRead, onRemove }: { item: Notification; onRead: () => void; onRemove: () => void }) {
  const { t } = useTranslation()
  const title = t(`kind.${item.kind.replaceAll('.', '_')}`)
  return (
    <li className="flex items-start gap-3 px-4 py-3">
      <span aria-hidden className={cn('mt-1.5 size-2 shrink-0 rounded-full', item.read_at ? 'bg-line-strong' : DOTS[item.severity])} />
      <div className="min-w-0 flex-1">
        <p className={cn(!item.read_at && 'font-semibold')}>
          {item.job_id ? (
            <Link to="/jobs/$id" params={{ id: item.job_id }} className="hover:underline" onClick={onRead}>
              {title}
            </Link>
          ) : (
            title
          )}
          {!item.read_at && <span className="sr-only"> ({t('notifications.unread')})</span>}
        </p>
        <p className="break-words text-muted">{item.body || item.title}</p>
        <p className="mt-0.5 text-xs text-muted">
          <Ago at={item.created_at} />
        </p>
      </div>
      {!item.read_at && (
        <Button size="sm" variant="ghost" onClick={onRead}>
          {t('notifications.read')}
        </Button>
      )}
      <IconButton label={t('actions.delete')} onClick={onRemove}>
        <Trash2 aria-hidden />
      </IconButton>
    </li>
  )
}
