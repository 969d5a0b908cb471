import { useEffect, useState } from 'react'
import { useFormat } from '@/i18n/useFormat'

/** How long ago, kept true while it is shown; the exact time on demand. */
export function Ago({ at }: { at: string }) {
  const format = useFormat()
  const [, tick] = useState(0)
  useEffect(() => {
    const timer = setInterval(() => tick((n) => n + 1), 30_000)
    return () => clearInterval(timer)
  }, [])
  return (
    <time dateTime={at} title={format.time(at)} className="whitespace-nowrap">
      {format.relative(at)}
    </time>
  )
}
