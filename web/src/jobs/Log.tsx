import { useQuery } from '@tanstack/react-query'
import { Download } from 'lucide-react'
import { useEffect, useMemo, useRef, useState } from 'react'
import { useTranslation } from 'react-i18next'
import { jobLogQuery } from '@/api/queries'
import { isActive, type Job } from '@/api/types'
import { cn } from '@/lib/cn'
import { Button } from '@/ui/Button'
import { Check, Input, Segmented } from '@/ui/form'
import { Card, Empty, Loaded } from '@/ui/layout'
import { filterLog, LEVELS, parseLog, type LogLevel } from './logLines'

/** Lines that are drawn; the whole log can be downloaded. */
const SHOWN = 2_000

export function Log({ job }: { job: Job }) {
  const { t } = useTranslation()
  const [follow, setFollow] = useState(true)
  const active = isActive(job.state)
  const query = useQuery({ ...jobLogQuery(job.id), refetchInterval: active && follow ? 3_000 : false })
  const [level, setLevel] = useState<LogLevel>('all')
  const [search, setSearch] = useState('')
  const text = query.data ?? ''
  const lines = useMemo(() => filterLog(parseLog(text), level, search), [text, level, search])
  const box = useRef<HTMLDivElement>(null)
  const count = lines.length

  useEffect(() => {
    if (follow && box.current) box.current.scrollTop = box.current.scrollHeight
  }, [follow, count])

  function download() {
    const url = URL.createObjectURL(new Blob([text], { type: 'text/plain' }))
    const link = document.createElement('a')
    link.href = url
    link.download = `${job.name}.log`
    link.click()
    URL.revokeObjectURL(url)
  }

  return (
    <Card
      flush
      title={t('log.title')}
      actions={
        <>
          {active && <Check label={t('log.follow')} checked={follow} onChange={(event) => setFollow(event.target.checked)} />}
          <Button size="sm" onClick={download} disabled={!text}>
            <Download aria-hidden />
            {t('common.download')}
          </Button>
        </>
      }
    >
      <div className="flex flex-wrap items-center gap-2 border-b px-4 py-2">
        <Input type="search" aria-label={t('log.search')} placeholder={t('log.search')} value={search} onChange={(event) => setSearch(event.target.value)} className="w-64!" />
        <Segmented label={t('log.level')} value={level} onChange={setLevel} options={LEVELS.map((value) => ({ value, label: t(`log.${value}`) }))} />
        <span className="tabular text-xs text-muted">{t('log.lines', { count })}</span>
      </div>
      <Loaded query={query}>
        {() =>
          count === 0 ? (
            <Empty title={t(text ? 'log.noMatch' : 'log.none')} />
          ) : (
            <div ref={box} tabIndex={0} role="log" aria-live="off" aria-label={t('log.title')} className="max-h-[32rem] overflow-auto bg-sunken py-2 font-mono text-xs leading-5">
              {lines.slice(-SHOWN).map((line) => (
                <div key={line.number} className="flex gap-3 px-4 hover:bg-hover">
                  <span aria-hidden className="w-10 shrink-0 text-right text-muted select-none">
                    {line.number}
                  </span>
                  <span className={cn('min-w-0 flex-1 break-words whitespace-pre-wrap', line.level === 'error' && 'text-danger', line.level === 'warn' && 'text-warning')}>{line.text}</span>
                </div>
              ))}
            </div>
          )
        }
      </Loaded>
    </Card>
  )
}
