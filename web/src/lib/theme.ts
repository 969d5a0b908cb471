import { useSyncExternalStore } from 'react'

export const THEMES = ['system', 'light', 'dark'] as const
export type Theme = (typeof THEMES)[number]

const KEY = 'hone.theme'
const system = matchMedia('(prefers-color-scheme: dark)')
const listeners = new Set<() => void>()

const stored = (): Theme => THEMES.find((theme) => theme === localStorage.getItem(KEY)) ?? 'system'

const isDark = (): boolean => stored() === 'dark' || (stored() === 'system' && system.matches)

function apply() {
  document.documentElement.classList.toggle('dark', isDark())
  for (const tell of listeners) tell()
}

system.addEventListener('change', apply)
// Another tab changed it.
addEventListener('storage', (event) => event.key === KEY && apply())

export function setTheme(theme: Theme) {
  localStorage.setItem(KEY, theme)
  apply()
}

function subscribe(tell: () => void) {
  listeners.add(tell)
  return () => listeners.delete(tell)
}

export const useTheme = (): Theme => useSyncExternalStore(subscribe, stored)
/** What is shown now, for what draws on a canvas. */
export const useDark = (): boolean => useSyncExternalStore(subscribe, isDark)
