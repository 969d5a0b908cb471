import { createRootRoute, createRoute, createRouter, lazyRouteComponent, redirect } from '@tanstack/react-router'
import { getKey } from './auth/session'
import { DashboardPage } from './pages/DashboardPage'
import { LoginPage } from './auth/LoginPage'
import { jobSearch } from './jobs/search'
import { NotFoundPage, PageFailed, Shell } from './shell/Shell'

const root = createRootRoute({ notFoundComponent: NotFoundPage, errorComponent: PageFailed })

const text = (value: unknown): string | undefined => (typeof value === 'string' && value !== '' ? value : undefined)

const login = createRoute({
  getParentRoute: () => root,
  path: '/login',
  component: LoginPage,
  validateSearch: (search: Record<string, unknown>): { next?: string } => ({ next: text(search['next']) }),
})

const app = createRoute({
  getParentRoute: () => root,
  id: 'app',
  component: Shell,
  beforeLoad: ({ location }) => {
    if (!getKey()) throw redirect({ to: '/login', search: { next: location.href } })
  },
})

const page = <const Path extends string>(path: Path, component: ReturnType<typeof lazyRouteComponent>) =>
  createRoute({ getParentRoute: () => app, path, component })

const dashboard = createRoute({ getParentRoute: () => app, path: '/', component: DashboardPage })

const jobs = createRoute({
  getParentRoute: () => app,
  path: '/jobs',
  component: lazyRouteComponent(() => import('./pages/JobsPage'), 'JobsPage'),
  validateSearch: jobSearch,
})

const JOB_TABS = ['curves', 'events', 'log', 'checkpoints', 'config'] as const
export type JobTab = (typeof JOB_TABS)[number]
const job = createRoute({
  getParentRoute: () => app,
  path: '/jobs/$id',
  component: lazyRouteComponent(() => import('./pages/JobPage'), 'JobPage'),
  validateSearch: (search: Record<string, unknown>): { tab?: JobTab } => ({ tab: JOB_TABS.find((tab) => tab === search['tab']) }),
})

const packages = createRoute({
  getParentRoute: () => app,
  path: '/packages',
  component: lazyRouteComponent(() => import('./pages/PackagesPage'), 'PackagesPage'),
  validateSearch: (search: Record<string, unknown>): { q?: string } => ({ q: text(search['q']) }),
})
const packageOne = createRoute({
  getParentRoute: () => app,
  path: '/packages/$id',
  component: lazyRouteComponent(() => import('./pages/PackagePage'), 'PackagePage'),
  validateSearch: (search: Record<string, unknown>): { a?: string; b?: string } => ({ a: text(search['a']), b: text(search['b']) }),
})
const wizard = page('/packages/$id/edit/$version', lazyRouteComponent(() => import('./pages/WizardPage'), 'WizardPage'))

const datasets = page('/data', lazyRouteComponent(() => import('./pages/DatasetsPage'), 'DatasetsPage'))
const dataset = page('/data/$id', lazyRouteComponent(() => import('./pages/DatasetPage'), 'DatasetPage'))
const models = page('/models', lazyRouteComponent(() => import('./pages/ModelsPage'), 'ModelsPage'))
const costs = page('/costs', lazyRouteComponent(() => import('./pages/CostsPage'), 'CostsPage'))
const notifications = page('/notifications', lazyRouteComponent(() => import('./pages/NotificationsPage'), 'NotificationsPage'))

const SETTINGS = ['keys', 'webhooks', 'audit', 'appearance'] as const
export type SettingsTab = (typeof SETTINGS)[number]
const settings = createRoute({
  getParentRoute: () => app,
  path: '/settings',
  component: lazyRouteComponent(() => import('./pages/SettingsPage'), 'SettingsPage'),
  validateSearch: (search: Record<string, unknown>): { tab?: SettingsTab } => ({ tab: SETTINGS.find((tab) => tab === search['tab']) }),
})

const pages = [dashboard, jobs, job, packages, packageOne, wizard, datasets, dataset, models, costs, notifications, settings]

export const router = createRouter({
  routeTree: root.addChildren([login, app.addChildren(pages)]),
  basepath: '/ui',
  defaultPreload: 'intent',
  scrollRestoration: true,
})

declare module '@tanstack/react-router' {
  interface Register {
    router: typeof router
  }
}
