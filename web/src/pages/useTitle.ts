import { useEffect } from 'react'

/** The browser's title of a page. */
export function useTitle(title: string | undefined) {
  useEffect(() => {
    document.title = title ? `${title} · Hone` : 'Hone'
  }, [title])
}
