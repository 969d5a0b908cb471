import { useQueryClient } from '@tanstack/react-query'
import { useNavigate } from '@tanstack/react-router'
import { useEffect, useEffectEvent } from 'react'
import { useTranslation } from 'react-i18next'
import { unreadQuery } from '@/api/queries'
import { watchNotifications } from '@/api/stream'
import type { Notification } from '@/api/types'
import { useKey } from '@/auth/session'
import { toast } from '@/ui/toast'

const TYPES = { info: 'info', warning: 'info', error: 'error' } as const

/** Tells what happens meanwhile, wherever one is: the end of a job, a budget, a refused dataset. */
export function useNews() {
  const { t } = useTranslation()
  const [client, navigate, key] = [useQueryClient(), useNavigate(), useKey()]

  const tell = useEffectEvent((news: Notification) => {
    void client.invalidateQueries({ queryKey: ['notifications'] })
    const job = news.job_id
    if (job) void client.invalidateQueries({ queryKey: ['jobs'] })
    const type = news.kind === 'training.job.succeeded' ? 'success' : TYPES[news.severity]
    const action = job ? { label: t('actions.open'), run: () => void navigate({ to: '/jobs/$id', params: { id: job } }) } : undefined
    toast[type]({ title: t(`kind.${news.kind.replaceAll('.', '_')}`), description: news.body || news.title, action })
  })
  // What came while the connection was away.
  const catchUp = useEffectEvent(() => void client.invalidateQueries({ queryKey: unreadQuery.queryKey }))

  useEffect(() => {
    if (!key) return
    return watchNotifications({ onMessage: (news) => tell(news), onLink: (link) => link === 'live' && catchUp() })
  }, [key])
}
