import { useQuery, useQueryClient } from '@tanstack/react-query'
import { Link, Outlet, useNavigate, useRouter, useRouterState, type ErrorComponentProps } from '@tanstack/react-router'
import { LogOut, Menu as MenuIcon, Monitor, Moon, Search, Sun, WifiOff, X } from 'lucide-react'
import { lazy, Suspense, useEffect, useRef, useState, useSyncExternalStore } from 'react'
import { useTranslation } from 'react-i18next'
import { meQuery, unreadQuery } from '@/api/queries'
import { setKey, useKey } from '@/auth/session'
import { LANGUAGES, setLanguage } from '@/i18n'
import { cn } from '@/lib/cn'
import { useHotkeys } from '@/lib/hotkeys'
import { setTheme, THEMES, useTheme, type Theme } from '@/lib/theme'
import { IconButton } from '@/ui/Button'
import { Segmented } from '@/ui/form'
import { Empty, Failed } from '@/ui/layout'
import { Logo } from './Logo'
import { PLACES } from './navigation'
import { useNews } from './useNews'

const CommandPalette = lazy(() => import('./CommandPalette').then((m) => ({ default: m.CommandPalette })))
const ShortcutSheet = lazy(() => import('./ShortcutSheet').then((m) => ({ default: m.ShortcutSheet })))

type Overlay = 'palette' | 'shortcuts' | null

function useOnline(): boolean {
  const subscribe = (tell: () => void) => {
    addEventListener('online', tell)
    addEventListener('offline', tell)
    return () => (removeEventListener('online', tell), removeEventListener('offline', tell))
  }
  return useSyncExternalStore(subscribe, () => navigator.onLine)
}

export function Shell() {
  const { t } = useTranslation()
  const [key, navigate, router] = [useKey(), useNavigate(), useRouter()]
  const [overlay, setOverlay] = useState<Overlay>(null)
  const [menu, setMenu] = useState(false)
  const path = useRouterState({ select: (state) => state.location.pathname })
  const main = useRef<HTMLElement>(null)
  const first = useRef(true)
  useNews()

  // Signed out, here or by the server.
  useEffect(() => {
    if (!key) void navigate({ to: '/login', search: { next: router.state.location.href } })
  }, [key, navigate, router])

  // A new page: the menu closes, and screen readers go on at its beginning.
  useEffect(() => {
    setMenu(false)
    if (first.current) first.current = false
    else main.current?.focus({ preventScroll: true })
  }, [path])

  useHotkeys({
    'mod+k': () => setOverlay('palette'),
    '?': () => setOverlay('shortcuts'),
    ...Object.fromEntries(PLACES.map((place) => [`g ${place.key}`, () => void navigate({ to: place.to })])),
  })

  return (
    <div className="min-h-dvh md:grid md:grid-cols-[13.5rem_minmax(0,1fr)]">
      <a href="#main" className="sr-only focus:not-sr-only focus:fixed focus:top-2 focus:left-2 focus:z-50 focus:rounded-md focus:bg-accent focus:px-3 focus:py-1.5 focus:text-on-accent">
        {t('shell.skip')}
      </a>
      <div className="sticky top-0 z-30 flex h-12 items-center gap-2 border-b bg-bg px-3 md:hidden">
        <IconButton label={t(menu ? 'shell.closeMenu' : 'shell.openMenu')} aria-expanded={menu} onClick={() => setMenu(!menu)}>
          {menu ? <X aria-hidden /> : <MenuIcon aria-hidden />}
        </IconButton>
        <Logo className="size-6" />
        <span className="font-semibold">Hone</span>
        <span className="flex-1" />
        <IconButton label={t('palette.title')} onClick={() => setOverlay('palette')}>
          <Search aria-hidden />
        </IconButton>
      </div>
      <aside className={cn('z-20 flex-col border-r bg-bg md:sticky md:top-0 md:flex md:h-dvh', menu ? 'fixed inset-0 top-12 flex' : 'hidden')}>
        <Sidebar onSearch={() => setOverlay('palette')} />
      </aside>
      <main id="main" ref={main} tabIndex={-1} className="min-w-0 px-4 py-5 outline-none md:px-8 md:py-6">
        <Offline />
        <div className="mx-auto max-w-6xl">
          <Outlet />
        </div>
      </main>
      <Suspense>
        {overlay === 'palette' && <CommandPalette onClose={() => setOverlay(null)} />}
        {overlay === 'shortcuts' && <ShortcutSheet onClose={() => setOverlay(null)} />}
      </Suspense>
    </div>
  )
}

function Offline() {
  const { t } = useTranslation()
  if (useOnline()) return null
  return (
    <div role="status" className="mx-auto mb-4 flex max-w-6xl items-center gap-2 rounded-lg bg-warning-soft px-3 py-2 text-warning">
      <WifiOff aria-hidden className="size-4" />
      {t('states.offline')}
    </div>
  )
}

const THEME_ICONS = { system: Monitor, light: Sun, dark: Moon } as const

function Sidebar({ onSearch }: { onSearch: () => void }) {
  const { t, i18n } = useTranslation()
  const client = useQueryClient()
  const me = useQuery(meQuery)
  const unread = useQuery(unreadQuery).data?.unread ?? 0
  const theme = useTheme()
  return (
    <>
      <div className="hidden h-14 items-center gap-2 px-4 md:flex">
        <Logo className="size-6" />
        <span className="font-semibold tracking-tight">Hone</span>
      </div>
      <div className="px-3 pt-3 pb-2 md:pt-0">
        <button type="button" onClick={onSearch} className="flex h-8 w-full items-center gap-2 rounded-md border border-line-strong bg-surface px-2.5 text-muted hover:border-muted">
          <Search aria-hidden className="size-4" />
          <span className="flex-1 text-left">{t('palette.open')}</span>
          <kbd className="font-sans text-xs">⌘K</kbd>
        </button>
      </div>
      <nav aria-label={t('shell.navigation')} className="flex-1 overflow-y-auto px-3">
        <ul className="flex flex-col gap-0.5">
          {PLACES.map(({ to, name, icon: Icon }) => (
            <li key={to}>
              <Link
                to={to}
                activeOptions={{ exact: to === '/', includeSearch: false }}
                className="flex h-8 items-center gap-2.5 rounded-md px-2.5 font-medium text-muted hover:bg-hover hover:text-text"
                activeProps={{ className: 'bg-hover text-text! [&_svg]:text-accent-text', 'aria-current': 'page' }}
              >
                <Icon aria-hidden className="size-4" />
                <span className="flex-1">{t(`nav.${name}`)}</span>
                {name === 'notifications' && unread > 0 && (
                  <span className="tabular rounded-full bg-accent px-1.5 text-2xs text-on-accent">
                    {unread > 99 ? '99+' : unread}
                    <span className="sr-only"> {t('shell.unread')}</span>
                  </span>
                )}
              </Link>
            </li>
          ))}
        </ul>
      </nav>
      <div className="flex flex-col gap-2 border-t p-3">
        <div className="flex flex-wrap items-center justify-between gap-2">
          <Segmented
            label={t('settings.theme')}
            value={theme}
            onChange={(value: Theme) => setTheme(value)}
            options={THEMES.map((value) => {
              const Icon = THEME_ICONS[value]
              return {
                value,
                title: t(`theme.${value}`),
                label: (
                  <>
                    <Icon aria-hidden />
                    <span className="sr-only">{t(`theme.${value}`)}</span>
                  </>
                ),
              }
            })}
          />
          <Segmented
            label={t('settings.language')}
            value={i18n.language}
            onChange={(value) => void setLanguage(value as (typeof LANGUAGES)[number])}
            options={LANGUAGES.map((value) => ({ value: value as string, label: value.toUpperCase(), title: { en: 'English', ko: '한국어' }[value] }))}
          />
        </div>
        <div className="flex items-center gap-2 px-1">
          <div className="min-w-0 flex-1">
            <p className="truncate font-medium">{me.data?.name ?? ' '}</p>
            <p className="truncate font-mono text-2xs text-muted">{me.data?.key_prefix ? `${me.data.key_prefix}…` : me.data?.email}</p>
          </div>
          <IconButton
            label={t('shell.signOut')}
            onClick={() => {
              setKey(null)
              client.clear()
            }}
          >
            <LogOut aria-hidden />
          </IconButton>
        </div>
      </div>
    </>
  )
}

export function NotFoundPage() {
  const { t } = useTranslation()
  return (
    <main className="grid min-h-[60vh] place-items-center">
      <Empty
        title={<h1>{t('errors.noPage')}</h1>}
        action={
          <Link to="/" className="font-medium text-accent-text hover:underline">
            {t('errors.home')}
          </Link>
        }
      />
    </main>
  )
}

/** A page that broke: what happened, and a way on. */
export function PageFailed({ error, reset }: ErrorComponentProps) {
  return (
    <div className="mx-auto max-w-2xl p-6">
      <Failed error={error} retry={reset} />
    </div>
  )
}
