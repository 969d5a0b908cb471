export const LEVELS = ['all', 'warn', 'error'] as const
export type LogLevel = (typeof LEVELS)[number]

export interface LogLine {
  number: number
  text: string
  level: 'error' | 'warn' | 'info'
}

/** The level a line names; what names none goes on from the line before, as the rest of a stack trace does. */
export function parseLog(text: string): LogLine[] {
  let level: LogLine['level'] = 'info'
  const lines = text.replace(/\n$/, '').split('\n')
  return lines.map((line, at) => {
    const named = /\b(ERROR|FATAL|WARN(?:ING)?|INFO|DEBUG|TRACE)\b|"level":\s*"(\w+)"/.exec(line.slice(0, 200))
    const name = (named?.[1] ?? named?.[2])?.toUpperCase()
    if (name) level = name.startsWith('WARN') ? 'warn' : name === 'ERROR' || name === 'FATAL' ? 'error' : 'info'
    return { number: at + 1, text: line, level }
  })
}

export function filterLog(lines: LogLine[], level: LogLevel, search: string): LogLine[] {
  const wanted = search.toLowerCase()
  const loud = (line: LogLine) => level === 'all' || line.level === 'error' || (level === 'warn' && line.level === 'warn')
  return lines.filter((line) => loud(line) && line.text.toLowerCase().includes(wanted))
}
