import { useQuery } from '@tanstack/react-query'
import { useNavigate } from '@tanstack/react-router'
import { Database, ListTodo, Moon, Package, Plus, Search, type LucideIcon } from 'lucide-react'
import { useId, useMemo, useState, type KeyboardEvent } from 'react'
import { useTranslation } from 'react-i18next'
import { datasetsQuery, packagesQuery, recentJobsQuery } from '@/api/queries'
import { cn } from '@/lib/cn'
import { setTheme, useDark } from '@/lib/theme'
import { Dialog } from '@/ui/overlay'
import { match } from './match'
import { PLACES } from './navigation'

interface Command {
  id: string
  title: string
  group: string
  icon: LucideIcon
  run: () => void
}

export function CommandPalette({ onClose }: { onClose: () => void }) {
  const { t } = useTranslation()
  const [navigate, dark, listId] = [useNavigate(), useDark(), useId()]
  const [query, setQuery] = useState('')
  const [at, setAt] = useState(0)
  const [jobs, packages, datasets] = [useQuery(recentJobsQuery).data, useQuery(packagesQuery('')).data, useQuery(datasetsQuery).data]

  const commands = useMemo<Command[]>(
    () => [
      { id: 'new-package', title: t('packages.new'), group: t('palette.actions'), icon: Plus, run: () => void navigate({ to: '/packages', hash: 'new' }) },
      { id: 'upload', title: t('datasets.upload'), group: t('palette.actions'), icon: Plus, run: () => void navigate({ to: '/data', hash: 'upload' }) },
      { id: 'theme', title: t(dark ? 'palette.light' : 'palette.dark'), group: t('palette.actions'), icon: Moon, run: () => setTheme(dark ? 'light' : 'dark') },
      ...PLACES.map(({ to, name, icon }) => ({ id: to, title: t(`nav.${name}`), group: t('palette.pages'), icon, run: () => void navigate({ to }) })),
      ...(jobs?.items ?? []).map((job) => ({ id: job.id, title: job.name, group: t('nav.jobs'), icon: ListTodo, run: () => void navigate({ to: '/jobs/$id', params: { id: job.id } }) })),
      ...(packages?.items ?? []).map((one) => ({ id: one.id, title: one.name, group: t('nav.packages'), icon: Package, run: () => void navigate({ to: '/packages/$id', params: { id: one.id } }) })),
      ...(datasets?.items ?? []).map((one) => ({ id: one.id, title: one.name, group: t('nav.datasets'), icon: Database, run: () => void navigate({ to: '/data/$id', params: { id: one.id } }) })),
    ],
    [t, navigate, dark, jobs, packages, datasets],
  )
  const found = useMemo(() => match(commands, query).slice(0, 40), [commands, query])
  const current = found[Math.min(at, found.length - 1)]

  function choose(command: Command | undefined) {
    if (!command) return
    onClose()
    command.run()
  }

  function onKeyDown(event: KeyboardEvent) {
    const move = { ArrowDown: 1, ArrowUp: -1 }[event.key]
    if (move !== undefined) {
      event.preventDefault()
      setAt((n) => (Math.min(n, found.length - 1) + move + found.length) % Math.max(found.length, 1))
    } else if (event.key === 'Enter') {
      event.preventDefault()
      choose(current)
    }
  }

  return (
    <Dialog open onClose={onClose} title={t('palette.title')}>
      <div className="flex h-10 items-center gap-2 rounded-md border border-line-strong px-3 has-focus-visible:outline-2 has-focus-visible:outline-ring">
        <Search aria-hidden className="size-4 text-muted" />
        <input
          autoFocus
          role="combobox"
          aria-expanded
          aria-controls={listId}
          aria-activedescendant={current ? `${listId}-${current.id}` : undefined}
          aria-label={t('palette.title')}
          placeholder={t('palette.placeholder')}
          value={query}
          onChange={(event) => {
            setQuery(event.target.value)
            setAt(0)
          }}
          onKeyDown={onKeyDown}
          className="w-full bg-transparent outline-none placeholder:text-muted"
        />
      </div>
      <div id={listId} role="listbox" aria-label={t('palette.results')} className="mt-2 mb-3 max-h-[50vh] overflow-y-auto">
        {found.length === 0 && <p className="px-3 py-6 text-center text-muted">{t('palette.none')}</p>}
        {found.map((command) => (
          <div
            key={command.id}
            id={`${listId}-${command.id}`}
            role="option"
            tabIndex={-1}
            aria-selected={command === current}
            ref={(element) => void (command === current && element?.scrollIntoView({ block: 'nearest' }))}
            onClick={() => choose(command)}
            onKeyDown={onKeyDown}
            onPointerMove={() => setAt(found.indexOf(command))}
            className={cn('flex h-9 cursor-pointer items-center gap-2.5 rounded-md px-3', command === current && 'bg-hover')}
          >
            <command.icon aria-hidden className="size-4 text-muted" />
            <span className="min-w-0 flex-1 truncate">{command.title}</span>
            <span className="text-xs text-muted">{command.group}</span>
          </div>
        ))}
      </div>
    </Dialog>
  )
}
