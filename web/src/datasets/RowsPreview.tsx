import { useQuery } from '@tanstack/react-query'
import { ChevronLeft, ChevronRight } from 'lucide-react'
import { useState } from 'react'
import { useTranslation } from 'react-i18next'
import { previewQuery } from '@/api/queries'
import type { Dataset } from '@/api/types'
import { useFormat } from '@/i18n/useFormat'
import { cn } from '@/lib/cn'
import { IconButton } from '@/ui/Button'
import { Segmented } from '@/ui/form'
import { Empty, Loaded } from '@/ui/layout'
import { turns } from './rows'

/** Rows as conversations; what the loss is of is marked. */
export function RowsPreview({ dataset, limit = 10 }: { dataset: Dataset; limit?: number }) {
  const { t } = useTranslation()
  const format = useFormat()
  const splits = dataset.files.map((file) => file.split)
  const [split, setSplit] = useState(splits[0] ?? 'train')
  const [offset, setOffset] = useState(0)
  const query = useQuery(previewQuery(dataset.id, split, offset, limit))
  const rows = dataset.files.find((file) => file.split === split)?.report.rows ?? dataset.rows
  return (
    <div className="flex flex-col gap-2">
      <div className="flex flex-wrap items-center gap-3">
        {splits.length > 1 && (
          <Segmented
            label={t('datasets.file')}
            value={split}
            onChange={(next) => {
              setSplit(next)
              setOffset(0)
            }}
            options={splits.map((value) => ({ value, label: t(`split.${value}`) }))}
          />
        )}
        <p className="flex items-center gap-1.5 text-xs text-muted">
          <span aria-hidden className="inline-block h-3 w-1 rounded-full bg-success" />
          {t('datasets.mask')}
        </p>
        <span className="flex-1" />
        <span className="tabular text-xs text-muted">{t('datasets.range', { from: format.count(Math.min(offset + 1, rows)), to: format.count(Math.min(offset + limit, rows)), total: format.count(rows) })}</span>
        <IconButton label={t('actions.previous')} disabled={offset === 0} onClick={() => setOffset(Math.max(0, offset - limit))}>
          <ChevronLeft aria-hidden />
        </IconButton>
        <IconButton label={t('actions.next')} disabled={offset + limit >= rows} onClick={() => setOffset(offset + limit)}>
          <ChevronRight aria-hidden />
        </IconButton>
      </div>
      <Loaded query={query}>
        {(preview) =>
          preview.rows.length === 0 ? (
            <Empty title={t('datasets.noRows')} />
          ) : (
            <ol className="flex flex-col gap-2">
              {preview.rows.map((row, at) => (
                <li key={offset + at} className="rounded-lg border">
                  <p className="tabular border-b px-3 py-1 text-2xs text-muted">{t('datasets.row', { number: format.count(offset + at + 1) })}</p>
                  <div className="flex flex-col">
                    {turns(preview.format, row).map((turn, number) => (
                      <div key={number} className={cn('flex gap-3 border-l-4 px-3 py-2', turn.trained ? 'border-l-success bg-success-soft/40' : 'border-l-transparent')}>
                        <span className="w-16 shrink-0 text-xs font-medium text-muted">
                          {t(`role.${turn.side ?? turn.role}`, { defaultValue: turn.role })}
                          {turn.trained && <span className="sr-only"> ({t('datasets.trained')})</span>}
                        </span>
                        <span className="line-clamp-[12] min-w-0 flex-1 break-words whitespace-pre-wrap">{turn.text}</span>
                      </div>
                    ))}
                  </div>
                </li>
              ))}
            </ol>
          )
        }
      </Loaded>
    </div>
  )
}
