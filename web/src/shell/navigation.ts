import { Bell, Box, CircleDollarSign, Database, LayoutDashboard, ListTodo, Package, Settings, type LucideIcon } from 'lucide-react'

export type Place = '/' | '/jobs' | '/packages' | '/data' | '/models' | '/costs' | '/notifications' | '/settings'

/** The pages of the side bar, with the key that leads there after `g`. */
export const PLACES: { to: Place; name: string; icon: LucideIcon; key: string }[] = [
  { to: '/', name: 'dashboard', icon: LayoutDashboard, key: 'd' },
  { to: '/packages', name: 'packages', icon: Package, key: 'p' },
  { to: '/jobs', name: 'jobs', icon: ListTodo, key: 'j' },
  { to: '/data', name: 'datasets', icon: Database, key: 't' },
  { to: '/models', name: 'models', icon: Box, key: 'm' },
  { to: '/costs', name: 'costs', icon: CircleDollarSign, key: 'c' },
  { to: '/notifications', name: 'notifications', icon: Bell, key: 'n' },
  { to: '/settings', name: 'settings', icon: Settings, key: 's' },
]
