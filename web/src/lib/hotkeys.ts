import { useEffect, useEffectEvent } from 'react'

const typing = (target: EventTarget | null): boolean =>
  target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName))

/** The keys of a sequence (`g j`), told apart from typing; `mod` is ⌘ or Ctrl. Returns the matcher for one listener. */
export function matcher(bindings: Record<string, () => void>, wait = 900) {
  let [pending, since] = ['', 0]
  return (event: KeyboardEvent, now = event.timeStamp): boolean => {
    const mod = event.metaKey || event.ctrlKey
    if (event.altKey || (!mod && typing(event.target))) return false
    const key = (mod ? 'mod+' : '') + (event.key.length === 1 ? event.key.toLowerCase() : event.key)
    const sequence = pending && now - since < wait ? `${pending} ${key}` : key
    const run = bindings[sequence] ?? bindings[key]
    pending = run ? '' : key
    since = now
    if (!run) return false
    event.preventDefault()
    run()
    return true
  }
}

export function useHotkeys(bindings: Record<string, () => void>) {
  const current = useEffectEvent(() => bindings)
  useEffect(() => {
    const latest = new Proxy({} as Record<string, () => void>, { get: (_, key) => current()[String(key)] })
    const match = matcher(latest)
    const listen = (event: KeyboardEvent) => void match(event)
    addEventListener('keydown', listen)
    return () => removeEventListener('keydown', listen)
  }, [])
}
