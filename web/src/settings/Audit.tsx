import { useInfiniteQuery } from '@tanstack/react-query'
import { ScrollText } from 'lucide-react'
import { useTranslation } from 'react-i18next'
import { auditQuery } from '@/api/queries'
import { useFormat } from '@/i18n/useFormat'
import { Button } from '@/ui/Button'
import { Card, Empty, Loaded, Mono, Table, Td } from '@/ui/layout'
import { Badge } from '@/ui/status'

export function Audit() {
  const { t } = useTranslation()
  const format = useFormat()
  const query = useInfiniteQuery(auditQuery)
  return (
    <Card title={t('settings.audit')} flush>
      <Loaded query={query}>
        {({ pages }) => {
          const entries = pages.flatMap((page) => page.items)
          return entries.length === 0 ? (
            <Empty icon={ScrollText} title={t('audit.none')} />
          ) : (
            <Table label={t('settings.audit')} head={[t('audit.when'), t('audit.who'), t('audit.what'), t('audit.on'), t('audit.from'), t('audit.outcome')]}>
              {entries.map((entry) => (
                <tr key={entry.id}>
                  <Td className="tabular whitespace-nowrap text-muted">{format.time(entry.created_at)}</Td>
                  <Td>
                    {entry.actor}
                    {entry.key_prefix && <Mono className="ml-1.5 text-muted">{entry.key_prefix}…</Mono>}
                  </Td>
                  <Td>
                    <Mono>{entry.action}</Mono>
                  </Td>
                  <Td>
                    <Mono className="text-muted">{entry.resource_id ?? entry.resource_kind}</Mono>
                  </Td>
                  <Td className="tabular text-muted">{entry.ip ?? '–'}</Td>
                  <Td>
                    <Badge tone={entry.outcome === 'done' ? 'neutral' : 'danger'}>{t(`outcome.${entry.outcome}`)}</Badge>
                  </Td>
                </tr>
              ))}
            </Table>
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
  )
}
