import { CircleAlert, Inbox, TriangleAlert, type LucideIcon } from 'lucide-react'
import type { ComponentProps, ReactNode } from 'react'
import { useTranslation } from 'react-i18next'
import { ApiError } from '@/api/client'
import { cn } from '@/lib/cn'
import { Button } from './Button'

/** The title of a page with what can be done on it. */
export function PageHeader({ title, lead, actions, above }: { title: ReactNode; lead?: ReactNode; actions?: ReactNode; above?: ReactNode }) {
  return (
    <header className="mb-5">
      {above && <div className="mb-1 text-xs text-muted">{above}</div>}
      <div className="flex flex-wrap items-start justify-between gap-x-4 gap-y-2">
        <div className="min-w-0">
          <h1 tabIndex={-1} className="text-lg font-semibold tracking-tight break-words outline-none">
            {title}
          </h1>
          {lead && <div className="mt-0.5 max-w-prose text-muted">{lead}</div>}
        </div>
        {actions && <div className="flex flex-wrap items-center gap-2">{actions}</div>}
      </div>
    </header>
  )
}

export function Card({ title, actions, children, className, flush }: { title?: ReactNode; actions?: ReactNode; children: ReactNode; className?: string; flush?: boolean }) {
  return (
    <section className={cn('min-w-0 rounded-lg border bg-surface', className)}>
      {(title || actions) && (
        <div className="flex min-h-10 flex-wrap items-center justify-between gap-2 border-b px-4 py-1.5">
          <h2 className="text-sm font-semibold">{title}</h2>
          {actions && <div className="flex items-center gap-2">{actions}</div>}
        </div>
      )}
      <div className={flush ? undefined : 'p-4'}>{children}</div>
    </section>
  )
}

export function Empty({ icon: Icon = Inbox, title, children, action }: { icon?: LucideIcon; title: ReactNode; children?: ReactNode; action?: ReactNode }) {
  return (
    <div className="flex flex-col items-center gap-1 px-6 py-12 text-center">
      <Icon aria-hidden className="mb-2 size-6 text-muted" strokeWidth={1.5} />
      <div className="font-medium">{title}</div>
      {children && <div className="max-w-md text-muted">{children}</div>}
      {action && <div className="mt-3 flex flex-wrap justify-center gap-2">{action}</div>}
    </div>
  )
}

const TONES = {
  danger: ['bg-danger-soft text-danger', CircleAlert],
  warning: ['bg-warning-soft text-warning', TriangleAlert],
  info: ['bg-info-soft text-info', CircleAlert],
  success: ['bg-success-soft text-success', CircleAlert],
} as const

export function Notice({ tone, title, children, action }: { tone: keyof typeof TONES; title: ReactNode; children?: ReactNode; action?: ReactNode }) {
  const [look, Icon] = TONES[tone]
  return (
    <div role={tone === 'danger' ? 'alert' : 'status'} className={cn('flex items-start gap-2.5 rounded-lg px-3 py-2.5', look)}>
      <Icon aria-hidden className="mt-0.5 size-4 shrink-0" />
      <div className="min-w-0 flex-1">
        <p className="font-medium break-words">{title}</p>
        {children && <div className="mt-0.5 break-words text-text">{children}</div>}
      </div>
      {action}
    </div>
  )
}

/** A request that failed: what happened, and another try. */
export function Failed({ error, retry }: { error: unknown; retry?: () => void }) {
  const { t } = useTranslation()
  const known = error instanceof ApiError ? error : null
  const title = known?.status === 0 ? t('errors.offline') : known?.status === 403 ? t('errors.forbidden') : known?.status === 404 ? t('errors.notFound') : t('errors.title')
  return (
    <Notice
      tone="danger"
      title={title}
      action={
        retry && (
          <Button size="sm" onClick={retry}>
            {t('actions.retry')}
          </Button>
        )
      }
    >
      <p>{error instanceof Error ? error.message : String(error)}</p>
      {known?.problem?.trace_id && <p className="font-mono text-xs">{t('errors.trace', { id: known.problem.trace_id })}</p>}
    </Notice>
  )
}

export function Skeleton({ className }: { className?: string }) {
  return <div className={cn('skeleton h-4', className)} />
}

/** While rows are on their way. */
export function SkeletonRows({ rows = 5 }: { rows?: number }) {
  const { t } = useTranslation()
  return (
    <div role="status" className="flex flex-col gap-3 p-4">
      <span className="sr-only">{t('states.loading')}</span>
      {Array.from({ length: rows }, (_, at) => (
        <Skeleton key={at} className={at % 2 ? 'w-4/5' : 'w-full'} />
      ))}
    </div>
  )
}

/** What a query has: its skeleton, its error or its content. */
export function Loaded<T>(props: {
  query: { data: T | undefined; error: unknown; isPending: boolean; refetch: () => unknown }
  skeleton?: ReactNode
  children: (data: T) => ReactNode
}) {
  const { data, error, refetch } = props.query
  if (data !== undefined) return props.children(data)
  if (error) return <div className="p-4"><Failed error={error} retry={() => void refetch()} /></div>
  return props.skeleton ?? <SkeletonRows />
}

/** Facts by name. */
export function Facts({ items, className }: { items: [ReactNode, ReactNode][]; className?: string }) {
  return (
    <dl className={cn('grid grid-cols-[minmax(7rem,auto)_1fr] gap-x-4 gap-y-1.5', className)}>
      {items.map(([name, value], at) => (
        <div key={at} className="contents">
          <dt className="text-muted">{name}</dt>
          <dd className="tabular min-w-0 break-words">{value}</dd>
        </div>
      ))}
    </dl>
  )
}

export const Mono = ({ children, className }: { children: ReactNode; className?: string }) => (
  <code className={cn('font-mono text-xs break-all', className)}>{children}</code>
)

export function Table({ head, children, label, className }: { head: ReactNode[]; children: ReactNode; label: string; className?: string }) {
  return (
    <div className="relative overflow-x-auto" role="region" aria-label={label} tabIndex={0}>
      <table className={cn('w-full border-collapse text-left', className)}>
        <thead>
          <tr className="border-b text-xs text-muted">
            {head.map((cell, at) => (
              <th key={at} scope="col" className="px-4 py-2 font-medium whitespace-nowrap">
                {cell}
              </th>
            ))}
          </tr>
        </thead>
        <tbody className="[&>tr]:border-b [&>tr:last-child]:border-0 [&>tr:hover]:bg-hover">{children}</tbody>
      </table>
    </div>
  )
}

export const Td = ({ className, ...rest }: ComponentProps<'td'>) => <td {...rest} className={cn('px-4 py-2 align-middle', className)} />

export function Progress({ value, label, className }: { value: number | null; label: string; className?: string }) {
  const percent = value === null ? null : Math.min(100, Math.max(0, value * 100))
  return (
    <div
      role="progressbar"
      aria-label={label}
      aria-valuemin={0}
      aria-valuemax={100}
      aria-valuenow={percent === null ? undefined : Math.round(percent)}
      className={cn('h-1.5 overflow-hidden rounded-full bg-hover', className)}
    >
      <div className={cn('h-full rounded-full bg-accent transition-[width] duration-500', percent === null && 'animate-pulse')} style={{ width: `${percent ?? 100}%` }} />
    </div>
  )
}
