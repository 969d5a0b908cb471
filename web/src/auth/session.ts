import { useSyncExternalStore } from 'react'

// The key lives as long as the tab: closing it signs out, and no other site or later visitor can read it.
const KEY = 'hone.key'
const listeners = new Set<() => void>()

export const getKey = (): string | null => sessionStorage.getItem(KEY)

export function setKey(key: string | null) {
  if (key === null) sessionStorage.removeItem(KEY)
  else sessionStorage.setItem(KEY, key)
  for (const tell of listeners) tell()
}

function subscribe(tell: () => void) {
  listeners.add(tell)
  return () => listeners.delete(tell)
}

export const useKey = (): string | null => useSyncExternalStore(subscribe, getKey)
