import { useQuery } from '@tanstack/react-query'
import { Link, useNavigate, useRouterState } from '@tanstack/react-router'
import { Database, Upload } from 'lucide-react'
import { lazy, Suspense, useEffect, useState } from 'react'
import { useTranslation } from 'react-i18next'
import { datasetsQuery } from '@/api/queries'
import { useFormat } from '@/i18n/useFormat'
import { useHotkeys } from '@/lib/hotkeys'
import { Ago } from '@/ui/Ago'
import { Button } from '@/ui/Button'
import { Card, Empty, Loaded, PageHeader, Table, Td } from '@/ui/layout'
import { DatasetBadge } from '@/ui/status'
import { useTitle } from './useTitle'

const UploadDialog = lazy(() => import('@/datasets/UploadDialog').then((m) => ({ default: m.UploadDialog })))

export function DatasetsPage() {
  const { t } = useTranslation()
  const format = useFormat()
  const navigate = useNavigate()
  const hash = useRouterState({ select: (state) => state.location.hash })
  const [uploading, setUploading] = useState(false)
  const query = useQuery({ ...datasetsQuery, refetchInterval: (q) => (q.state.data?.items.some((one) => one.status === 'validating') ? 2_000 : false) })
  useTitle(t('nav.datasets'))
  useHotkeys({ n: () => setUploading(true) })
  useEffect(() => {
    if (hash === 'upload') setUploading(true)
  }, [hash])
  const button = (
    <Button variant="primary" onClick={() => setUploading(true)}>
      <Upload aria-hidden />
      {t('datasets.upload')}
    </Button>
  )
  return (
    <>
      <PageHeader title={t('nav.datasets')} lead={t('datasets.lead')} actions={button} />
      <Card flush>
        <Loaded query={query}>
          {({ items }) =>
            items.length === 0 ? (
              <Empty icon={Database} title={t('dataset.none')} action={button}>
                {t('dataset.noneLead')}
              </Empty>
            ) : (
              <Table label={t('nav.datasets')} head={[t('upload.name'), t('jobs.state'), t('datasets.format'), t('datasets.rowsName'), t('common.size'), t('jobs.created')]}>
                {items.map((one) => (
                  <tr key={one.id}>
                    <Td>
                      <Link to="/data/$id" params={{ id: one.id }} className="font-medium hover:underline">
                        {one.name}
                      </Link>
                      {one.description && <p className="truncate text-xs text-muted">{one.description}</p>}
                    </Td>
                    <Td>
                      <DatasetBadge status={one.status} />
                    </Td>
                    <Td className="text-muted">{one.format ? t(`format.${one.format}`) : '–'}</Td>
                    <Td className="tabular">{format.count(one.rows)}</Td>
                    <Td className="tabular whitespace-nowrap">{format.bytes(one.size)}</Td>
                    <Td className="text-muted">
                      <Ago at={one.created_at} />
                    </Td>
                  </tr>
                ))}
              </Table>
            )
          }
        </Loaded>
      </Card>
      <Suspense>
        {uploading && (
          <UploadDialog
            onClose={() => {
              setUploading(false)
              if (hash) void navigate({ to: '/data', replace: true })
            }}
          />
        )}
      </Suspense>
    </>
  )
}
