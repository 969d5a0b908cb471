import { useQuery } from '@tanstack/react-query'
import { Download } from 'lucide-react'
import { useTranslation } from 'react-i18next'
import { jobArtifactsQuery } from '@/api/queries'
import { useFormat } from '@/i18n/useFormat'
import { buttonClass } from '@/ui/Button'
import { Card, Empty, Loaded, Mono, Table, Td } from '@/ui/layout'

/** What a job made. The URLs lead straight to storage and work for some minutes. */
export function Downloads({ job }: { job: string }) {
  const { t } = useTranslation()
  const format = useFormat()
  const artifacts = useQuery({ ...jobArtifactsQuery(job), refetchInterval: 300_000 })
  return (
    <Card title={t('job.artifacts')} flush>
      <Loaded query={artifacts}>
        {(files) =>
          files.length === 0 ? (
            <Empty title={t('job.noArtifacts')} />
          ) : (
            <Table label={t('job.artifacts')} head={[t('common.file'), t('common.size'), 'SHA-256', <span key="get" className="sr-only">{t('common.download')}</span>]}>
              {files.map((file) => (
                <tr key={file.path}>
                  <Td className="font-medium">{file.path}</Td>
                  <Td className="tabular whitespace-nowrap">{format.bytes(file.size)}</Td>
                  <Td>
                    <Mono className="text-muted">{file.sha256.slice(0, 16)}…</Mono>
                  </Td>
                  <Td className="text-right">
                    <a href={file.url} download={file.path.split('/').at(-1)} className={buttonClass({ size: 'sm' })} aria-label={t('common.downloadOf', { name: file.path })}>
                      <Download aria-hidden />
                      {t('common.download')}
                    </a>
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
