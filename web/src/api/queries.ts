// What the pages read. A key begins with the kind of thing, so that a change drops all that shows it.
import { infiniteQueryOptions, keepPreviousData, queryOptions } from '@tanstack/react-query'
import { api, body } from './client'
import { isActive, type Job, type JobState } from './types'

/** Jobs that move are asked for again; their pages have a live stream besides. */
const LIVE = 5_000

const anyActive = (jobs: Job[] | undefined) => (jobs?.some((job) => isActive(job.state)) ? LIVE : 30_000)

export const meQuery = queryOptions({
  queryKey: ['me'],
  queryFn: ({ signal }) => body(api.GET('/api/me', { signal })),
  staleTime: 300_000,
})

export const recentJobsQuery = queryOptions({
  queryKey: ['jobs', 'recent'],
  queryFn: ({ signal }) => body(api.GET('/training/jobs', { params: { query: { limit: 50 } }, signal })),
  refetchInterval: (query) => anyActive(query.state.data?.items),
})

export const jobsQuery = (state?: JobState) =>
  infiniteQueryOptions({
    queryKey: ['jobs', 'list', state ?? 'all'],
    queryFn: ({ signal, pageParam }) =>
      body(api.GET('/training/jobs', { params: { query: { limit: 100, state, cursor: pageParam } }, signal })),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (page) => page.next_cursor ?? undefined,
    refetchInterval: (query) => anyActive(query.state.data?.pages.flatMap((page) => page.items)),
  })

export const jobQuery = (id: string) =>
  queryOptions({
    queryKey: ['jobs', 'one', id],
    queryFn: ({ signal }) => body(api.GET('/training/jobs/{id}', { params: { path: { id } }, signal })),
    refetchInterval: (query) => (query.state.data && isActive(query.state.data.state) ? LIVE : false),
  })

export const checkpointsQuery = (id: string) =>
  queryOptions({
    queryKey: ['jobs', 'one', id, 'checkpoints'],
    queryFn: ({ signal }) => body(api.GET('/training/jobs/{id}/checkpoints', { params: { path: { id } }, signal })),
  })

/** With URLs that work for minutes: asked for when somebody wants to download. */
export const jobArtifactsQuery = (id: string) =>
  queryOptions({
    queryKey: ['jobs', 'one', id, 'artifacts'],
    queryFn: ({ signal }) => body(api.GET('/training/jobs/{id}/artifacts', { params: { path: { id } }, signal })),
    staleTime: 0,
  })

export const jobLogQuery = (id: string) =>
  queryOptions({
    queryKey: ['jobs', 'one', id, 'log'],
    queryFn: ({ signal }) => body(api.GET('/training/jobs/{id}/logs', { params: { path: { id } }, parseAs: 'text', signal })),
  })

/** A few points, for a line in a list. */
export const sparklineQuery = (id: string, over: boolean) =>
  queryOptions({
    queryKey: ['jobs', 'spark', id, over],
    queryFn: ({ signal }) =>
      body(api.GET('/training/jobs/{id}/metrics', { params: { path: { id }, query: { points: 60 } }, signal })),
    staleTime: over ? Number.POSITIVE_INFINITY : 10_000,
    refetchInterval: over ? false : 15_000,
  })

export const datasetsQuery = queryOptions({
  queryKey: ['datasets', 'list'],
  queryFn: ({ signal }) => body(api.GET('/datasets', { params: { query: { limit: 200 } }, signal })),
})

export const datasetQuery = (id: string) =>
  queryOptions({
    queryKey: ['datasets', 'one', id],
    queryFn: ({ signal }) => body(api.GET('/datasets/{id}', { params: { path: { id } }, signal })),
  })

export const previewQuery = (id: string, split: 'train' | 'validation', offset: number, limit = 10) =>
  queryOptions({
    queryKey: ['datasets', 'one', id, 'preview', split, offset, limit],
    queryFn: ({ signal }) =>
      body(api.GET('/datasets/{id}/preview', { params: { path: { id }, query: { split, offset, limit } }, signal })),
    placeholderData: keepPreviousData,
    staleTime: 300_000,
  })

export const datasetStatisticsQuery = (id: string) =>
  queryOptions({
    queryKey: ['datasets', 'one', id, 'statistics'],
    queryFn: ({ signal }) => body(api.GET('/datasets/{id}/statistics', { params: { path: { id } }, signal })),
    staleTime: 300_000,
  })

export const datasetUsageQuery = (id: string) =>
  queryOptions({
    queryKey: ['datasets', 'one', id, 'usage'],
    queryFn: ({ signal }) => body(api.GET('/datasets/{id}/usage', { params: { path: { id } }, signal })),
  })

export const modelsQuery = queryOptions({
  queryKey: ['models', 'list'],
  queryFn: ({ signal }) => body(api.GET('/api/models', { params: { query: { limit: 200 } }, signal })),
})

export const pullsQuery = queryOptions({
  queryKey: ['models', 'pulls'],
  queryFn: ({ signal }) => body(api.GET('/api/models/pulls', { params: { query: { limit: 20 } }, signal })),
  refetchInterval: (query) =>
    query.state.data?.items.some((pull) => pull.status === 'queued' || pull.status === 'running') ? 2_000 : false,
})

export const hubSearchQuery = (search: string) =>
  queryOptions({
    queryKey: ['hub', search],
    queryFn: ({ signal }) =>
      body(api.GET('/api/models/search', { params: { query: { search, limit: 20 } }, signal })),
    enabled: search.length > 1,
    staleTime: 60_000,
    retry: false,
  })

export const artifactsQuery = queryOptions({
  queryKey: ['artifacts', 'list'],
  queryFn: ({ signal }) => body(api.GET('/api/artifacts', { params: { query: { limit: 200 } }, signal })),
})

export const presetsQuery = queryOptions({
  queryKey: ['presets'],
  queryFn: ({ signal }) => body(api.GET('/api/presets', { signal })),
  staleTime: Number.POSITIVE_INFINITY,
})

export const gpuConfigsQuery = queryOptions({
  queryKey: ['gpu-configs'],
  queryFn: ({ signal }) => body(api.GET('/api/gpu-configs', { signal })),
  staleTime: Number.POSITIVE_INFINITY,
})

export const packagesQuery = (name: string) =>
  queryOptions({
    queryKey: ['packages', 'list', name],
    queryFn: ({ signal }) =>
      body(api.GET('/api/training/packages', { params: { query: { limit: 100, sort: '-updated_at', name: name || undefined } }, signal })),
    placeholderData: keepPreviousData,
  })

export const packageQuery = (id: string) =>
  queryOptions({
    queryKey: ['packages', 'one', id],
    queryFn: ({ signal }) => body(api.GET('/api/training/packages/{id}', { params: { path: { id } }, signal })),
  })

export const versionsQuery = (packageId: string) =>
  queryOptions({
    queryKey: ['packages', 'one', packageId, 'versions'],
    queryFn: ({ signal }) =>
      body(api.GET('/api/training/versions', { params: { query: { package_id: packageId, limit: 200 } }, signal })),
    refetchInterval: (query) =>
      query.state.data?.items.some((v) => v.training.status === 'running' || v.training.status === 'pending') ? LIVE : false,
  })

export const versionQuery = (id: string) =>
  queryOptions({
    queryKey: ['versions', id],
    queryFn: ({ signal }) => body(api.GET('/api/training/versions/{id}', { params: { path: { id } }, signal })),
  })

export const versionEstimateQuery = (id: string) =>
  queryOptions({
    queryKey: ['versions', id, 'estimate'],
    queryFn: ({ signal }) => body(api.GET('/api/training/versions/{id}/estimate', { params: { path: { id } }, signal })),
    refetchInterval: (query) => (query.state.data?.status === 'pending' ? 2_000 : false),
  })

export const compareQuery = (a: string, b: string) =>
  queryOptions({
    queryKey: ['versions', 'compare', a, b],
    queryFn: ({ signal }) => body(api.GET('/api/training/versions/{a}/compare/{b}', { params: { path: { a, b } }, signal })),
  })

export const unreadQuery = queryOptions({
  queryKey: ['notifications', 'unread'],
  queryFn: ({ signal }) => body(api.GET('/api/notifications/unread', { signal })),
})

export const notificationsQuery = (unread: boolean) =>
  infiniteQueryOptions({
    queryKey: ['notifications', 'list', unread],
    queryFn: ({ signal, pageParam }) =>
      body(api.GET('/api/notifications', { params: { query: { limit: 50, unread: unread || undefined, cursor: pageParam } }, signal })),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (page) => page.next_cursor ?? undefined,
  })

export const costSummaryQuery = (group_by: 'day' | 'package' | 'gpu_config', from: string) =>
  queryOptions({
    queryKey: ['costs', 'summary', group_by, from],
    queryFn: ({ signal }) => body(api.GET('/api/costs/summary', { params: { query: { group_by, from } }, signal })),
    placeholderData: keepPreviousData,
  })

export const costsQuery = (from: string) =>
  infiniteQueryOptions({
    queryKey: ['costs', 'records', from],
    queryFn: ({ signal, pageParam }) =>
      body(api.GET('/api/costs', { params: { query: { from, limit: 100, cursor: pageParam } }, signal })),
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (page) => page.next_cursor ?? undefined,
  })

export const keysQuery = queryOptions({
  queryKey: ['keys'],
  queryFn: ({ signal }) => body(api.GET('/api/keys', { params: { query: { limit: 200 } }, signal })),
})

export const webhooksQuery = queryOptions({
  queryKey: ['webhooks'],
  queryFn: ({ signal }) => body(api.GET('/api/webhooks', { params: { query: { limit: 100 } }, signal })),
})

export const deliveriesQuery = (id: string) =>
  queryOptions({
    queryKey: ['webhooks', id, 'deliveries'],
    queryFn: ({ signal }) =>
      body(api.GET('/api/webhooks/{id}/deliveries', { params: { path: { id }, query: { limit: 10 } }, signal })),
    refetchInterval: (query) => (query.state.data?.items.some((d) => d.status === 'pending') ? 2_000 : false),
  })

export const auditQuery = infiniteQueryOptions({
  queryKey: ['audit'],
  queryFn: ({ signal, pageParam }) =>
    body(api.GET('/api/audit', { params: { query: { limit: 50, cursor: pageParam } }, signal })),
  initialPageParam: undefined as string | undefined,
  getNextPageParam: (page) => page.next_cursor ?? undefined,
})
