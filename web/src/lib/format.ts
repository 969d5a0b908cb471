// Numbers, times and amounts as people of a language write them. `language` is that of i18next.

const number = (language: string, options: Intl.NumberFormatOptions) => new Intl.NumberFormat(language, options)

export const formatCount = (value: number, language: string): string => number(language, {}).format(value)

/** 8.03 B, 1.2 M: parameters, tokens. */
export const formatCompact = (value: number, language: string): string =>
  number(language, { notation: 'compact', maximumSignificantDigits: 3 }).format(value)

/** A metric: four significant digits, and powers of ten for what is tiny. */
export function formatMetric(value: number | null | undefined, language: string): string {
  if (value === null || value === undefined || !Number.isFinite(value)) return '–'
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(2)
  return number(language, { maximumSignificantDigits: 4 }).format(value)
}

const UNITS = ['byte', 'kilobyte', 'megabyte', 'gigabyte', 'terabyte'] as const

/** Decimal units, as limits are given in. */
export function formatBytes(bytes: number, language: string): string {
  let [value, unit] = [bytes, 0]
  while (value >= 1000 && unit < UNITS.length - 1) [value, unit] = [value / 1000, unit + 1]
  const digits = unit === 0 || value >= 100 ? 0 : 1
  return number(language, { style: 'unit', unit: UNITS[unit], unitDisplay: unit === 0 ? 'long' : 'short', maximumFractionDigits: digits }).format(value)
}

/** `2 h 5 min`, `34 s`: the two largest units. */
export function formatDuration(seconds: number | null | undefined, language: string): string {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return '–'
  const total = Math.max(0, Math.round(seconds))
  const parts: [number, Intl.NumberFormatOptions['unit']][] = [
    [Math.floor(total / 86400), 'day'],
    [Math.floor(total / 3600) % 24, 'hour'],
    [Math.floor(total / 60) % 60, 'minute'],
    [total % 60, 'second'],
  ]
  const first = parts.findIndex(([value]) => value > 0)
  const shown = first < 0 ? parts.slice(-1) : parts.slice(first, first + 2).filter(([value], at) => at === 0 || value > 0)
  return shown.map(([value, unit]) => number(language, { style: 'unit', unit, unitDisplay: 'short' }).format(value)).join(' ')
}

const STEPS: [Intl.RelativeTimeFormatUnit, number][] = [
  ['year', 31_536_000],
  ['month', 2_592_000],
  ['day', 86_400],
  ['hour', 3600],
  ['minute', 60],
]

/** `3 minutes ago`; below a minute, `now`. */
export function formatRelative(at: string, language: string, now = Date.now()): string {
  const seconds = (new Date(at).getTime() - now) / 1000
  const format = new Intl.RelativeTimeFormat(language, { numeric: 'auto' })
  for (const [unit, length] of STEPS) {
    if (Math.abs(seconds) >= length) return format.format(Math.trunc(seconds / length), unit)
  }
  return format.format(0, 'second')
}

export const formatTime = (at: string, language: string): string =>
  new Intl.DateTimeFormat(language, { dateStyle: 'medium', timeStyle: 'medium' }).format(new Date(at))

export const formatDay = (at: string, language: string): string =>
  new Intl.DateTimeFormat(language, { dateStyle: 'medium' }).format(new Date(at))

/** Amounts below a cent are shown with what makes them visible. */
export function formatMoney(amount: number | null | undefined, currency: string, language: string): string {
  if (amount === null || amount === undefined) return '–'
  const digits = amount !== 0 && Math.abs(amount) < 0.01 ? 4 : 2
  return number(language, { style: 'currency', currency, minimumFractionDigits: digits, maximumFractionDigits: digits }).format(amount)
}

export const formatPercent = (share: number, language: string): string =>
  number(language, { style: 'percent', maximumFractionDigits: share < 0.1 ? 1 : 0 }).format(share)
