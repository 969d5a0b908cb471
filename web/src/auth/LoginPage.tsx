import { useQueryClient } from '@tanstack/react-query'
import { useNavigate, useRouter, useSearch } from '@tanstack/react-router'
import { KeyRound } from 'lucide-react'
import { useEffect, useState, type FormEvent } from 'react'
import { useTranslation } from 'react-i18next'
import { ApiError, toError } from '@/api/client'
import { meQuery } from '@/api/queries'
import { Button } from '@/ui/Button'
import { Field, Input } from '@/ui/form'
import { Logo } from '@/shell/Logo'
import { setKey } from './session'

/** Asks who a key belongs to, without storing it. */
async function check(key: string) {
  const reply = await fetch('/api/me', { headers: { authorization: `Bearer ${key}` } }).catch((error: unknown) => {
    throw new ApiError(0, null, String(error))
  })
  if (!reply.ok) throw await toError(reply)
  return (await reply.json()) as Awaited<ReturnType<NonNullable<typeof meQuery.queryFn>>>
}

export function LoginPage() {
  const { t } = useTranslation()
  const { next } = useSearch({ from: '/login' })
  const [navigate, router, client] = [useNavigate(), useRouter(), useQueryClient()]
  const [error, setError] = useState<string>()
  const [busy, setBusy] = useState(false)

  useEffect(() => {
    document.title = `${t('login.title')} · Hone`
  }, [t])

  async function submit(event: FormEvent<HTMLFormElement>) {
    event.preventDefault()
    const key = String(new FormData(event.currentTarget).get('key') ?? '').trim()
    if (!key) return setError(t('login.empty'))
    setBusy(true)
    setError(undefined)
    try {
      const me = await check(key)
      client.clear()
      setKey(key)
      client.setQueryData(meQuery.queryKey, me)
      // Only pages of this application.
      if (next?.startsWith('/') && !next.startsWith('//')) router.history.push(next)
      else await navigate({ to: '/' })
    } catch (failure) {
      const status = failure instanceof ApiError ? failure.status : 0
      setError(status === 401 ? t('login.refused') : status === 0 ? t('errors.offline') : String((failure as Error).message))
    } finally {
      setBusy(false)
    }
  }

  return (
    <main className="grid min-h-dvh place-items-center p-4">
      <div className="w-full max-w-sm">
        <div className="mb-6 flex items-center gap-2.5">
          <Logo className="size-8" />
          <span className="text-lg font-semibold tracking-tight">Hone</span>
        </div>
        <form onSubmit={submit} className="rounded-xl border bg-surface p-5">
          <h1 className="mb-1 text-base font-semibold">{t('login.title')}</h1>
          <p className="mb-4 text-muted">{t('login.lead')}</p>
          <Field label={t('login.key')} error={error} help={t('login.help')}>
            {/* Not a password manager's business: keys are revoked, not remembered. */}
            {(control) => <Input {...control} name="key" type="password" autoComplete="off" placeholder="hone_sk_…" autoFocus className="font-mono" />}
          </Field>
          <Button type="submit" variant="primary" busy={busy} className="mt-4 w-full">
            <KeyRound aria-hidden />
            {t('login.submit')}
          </Button>
        </form>
      </div>
    </main>
  )
}
