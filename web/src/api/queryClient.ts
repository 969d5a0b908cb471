import { QueryClient } from '@tanstack/react-query'
import { ApiError } from './client'

/** What another try may mend: the network, a busy or restarting server. */
const passing = (error: unknown): boolean => error instanceof ApiError && (error.status === 0 || error.status === 429 || error.status >= 502)

export const queryClient = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 5_000,
      retry: (count, error) => passing(error) && count < 4,
      retryDelay: (count, error) =>
        error instanceof ApiError && error.retryAfter !== null ? error.retryAfter * 1000 : Math.min(1000 * 2 ** count, 10_000),
      // The machine may have no internet and still reach Hone.
      networkMode: 'always',
    },
    mutations: { networkMode: 'always' },
  },
})
