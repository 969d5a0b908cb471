import { useQueryClient } from '@tanstack/react-query'
import { useCallback, useEffect, useEffectEvent, useRef, useState } from 'react'
import { api, ApiError } from '@/api/client'
import { versionQuery } from '@/api/queries'
import type { Steps, Version } from '@/api/types'
import { contentOf, merge, sameContent, type Content, type StepId } from './steps'

/** Between two saves that nobody asked for. */
export const AUTO_SAVE_MS = 30_000

export type SaveState = 'saved' | 'dirty' | 'saving' | 'failed' | 'conflict'

export interface Draft {
  content: Content
  /** As the server has it: its revision and what its rules say. */
  version: Version
  save: SaveState
  savedAt: number | null
  error: unknown
  /** Somebody else's newer draft, and the steps both have changed. */
  conflict: { theirs: Version; clashes: (StepId | 'name' | 'change_summary')[] } | null
  /** The other's changes that were taken over without a question. */
  merged: number
  setStep: <K extends StepId>(step: K, value: Steps[K]) => void
  setText: (key: 'name' | 'change_summary', value: string) => void
  /** Saves what is not saved; gives the server's version, or null when it could not. */
  flush: () => Promise<Version | null>
  /** Ends a conflict: with one's own content over theirs, or with theirs. */
  settle: (whose: 'mine' | 'theirs') => void
}

/** A draft that is edited here: saved every 30 seconds, at every change of step, and when one leaves. */
export function useDraft(initial: Version): Draft {
  const client = useQueryClient()
  const [content, setContent] = useState(() => contentOf(initial))
  const [version, setVersion] = useState(initial)
  const [save, setSave] = useState<SaveState>('saved')
  const [savedAt, setSavedAt] = useState<number | null>(null)
  const [error, setError] = useState<unknown>(null)
  const [conflict, setConflict] = useState<Draft['conflict']>(null)
  const [merged, setMerged] = useState(0)
  // What a save that runs must see as it is now.
  const now = useRef({ content, base: contentOf(initial), revision: initial.revision, version: initial })
  const running = useRef<Promise<Version | null> | null>(null)

  const change = useCallback((next: Content) => {
    now.current.content = next
    setContent(next)
    setSave((old) => (old === 'conflict' ? old : sameContent(next, now.current.base) ? 'saved' : 'dirty'))
  }, [])

  const taken = useCallback(
    (saved: Version, sent: Content) => {
      now.current = { ...now.current, base: sent, revision: saved.revision, version: saved }
      client.setQueryData(versionQuery(saved.id).queryKey, saved)
      setVersion(saved)
      setSavedAt(Date.now())
      setError(null)
      setSave(sameContent(now.current.content, sent) ? 'saved' : 'dirty')
      return saved
    },
    [client],
  )

  const send = useCallback(
    async (tries: number): Promise<Version | null> => {
      const sent = now.current.content
      try {
        const { data } = await api.POST('/api/training/versions/auto-save', {
          params: { header: { 'If-Match': `"${now.current.revision}"` } },
          body: { version_id: initial.id, draft: { name: sent.name, change_summary: sent.change_summary, steps: sent.steps } },
        })
        return data ? taken(data, sent) : null
      } catch (failure) {
        const theirs = failure instanceof ApiError && failure.status === 412 ? (failure.problem?.current as Version | undefined) : undefined
        if (!theirs) {
          setError(failure)
          setSave('failed')
          return null
        }
        const both = merge(now.current.base, now.current.content, contentOf(theirs))
        if (both.clashes.length > 0 || tries === 0) {
          setConflict({ theirs, clashes: both.clashes })
          setSave('conflict')
          return null
        }
        now.current = { ...now.current, base: contentOf(theirs), revision: theirs.revision }
        change(both.merged)
        setMerged((n) => n + 1)
        return send(tries - 1)
      }
    },
    [change, initial.id, taken],
  )

  const flush = useCallback(async (): Promise<Version | null> => {
    // One save at a time; what changed meanwhile goes with the next.
    if (running.current) await running.current
    if (sameContent(now.current.content, now.current.base)) return now.current.version
    setSave('saving')
    const sending = send(3)
    running.current = sending
    return sending.finally(() => {
      running.current = null
    })
  }, [send])

  const settle = useCallback(
    (whose: 'mine' | 'theirs') => {
      if (!conflict) return
      const theirs = contentOf(conflict.theirs)
      now.current = { ...now.current, base: theirs, revision: conflict.theirs.revision, version: conflict.theirs }
      setConflict(null)
      setVersion(conflict.theirs)
      if (whose === 'theirs') change(theirs)
      setSave('dirty')
      void flush().then((saved) => saved && setSave('saved'))
    },
    [change, conflict, flush],
  )

  const autoSave = useEffectEvent(() => {
    if (!conflict) void flush()
  })
  useEffect(() => {
    const timer = setInterval(() => autoSave(), AUTO_SAVE_MS)
    const hidden = () => document.hidden && autoSave()
    document.addEventListener('visibilitychange', hidden)
    return () => {
      clearInterval(timer)
      document.removeEventListener('visibilitychange', hidden)
      autoSave()
    }
  }, [])
  useEffect(() => {
    if (save === 'saved') return
    const ask = (event: BeforeUnloadEvent) => event.preventDefault()
    addEventListener('beforeunload', ask)
    return () => removeEventListener('beforeunload', ask)
  }, [save])

  const setStep: Draft['setStep'] = useCallback((step, value) => change({ ...now.current.content, steps: { ...now.current.content.steps, [step]: value } }), [change])
  const setText: Draft['setText'] = useCallback((key, value) => change({ ...now.current.content, [key]: value }), [change])
  return { content, version, save, savedAt, error, conflict, merged, setStep, setText, flush, settle }
}
