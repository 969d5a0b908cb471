import 'uplot/dist/uPlot.min.css'
import { useEffect, useEffectEvent, useRef } from 'react'
import uPlot from 'uplot'
import { useDark } from '@/lib/theme'

export interface Line {
  label: string
  values: (number | null)[]
  /** Index into the colours of curves. */
  color: number
  /** The raw values behind a smoothed line. */
  ghost?: boolean
  /** Few values, far apart: joined, with dots. */
  sparse?: boolean
}

interface Props {
  x: number[]
  lines: Line[]
  height: number
  log: boolean
  formatX: (value: number) => string
  formatY: (value: number) => string
  /** Charts with the same name share the cursor and the zoom. */
  sync: string
  range: [number, number] | null
  onZoom: (range: [number, number] | null) => void
  label: string
}

const css = (name: string) => getComputedStyle(document.documentElement).getPropertyValue(name).trim()

/** A canvas with curves. What it shows is told in words and as a table beside it. */
export function Chart(props: Props) {
  const holder = useRef<HTMLDivElement>(null)
  const plot = useRef<uPlot | null>(null)
  const dark = useDark()
  // What makes a new plot; data alone does not.
  const shape = [props.log, dark, props.height, ...props.lines.map((line) => `${line.label}${line.color}${line.ghost}${line.sparse}`)].join('|')

  const options = useEffectEvent((width: number): uPlot.Options => {
    const [line, muted] = [css('--line'), css('--muted')]
    const font = `11px ${css('--font-sans') || 'Inter Variable, sans-serif'}`
    const axis = { stroke: muted, font, grid: { stroke: line, width: 1 }, ticks: { show: false }, gap: 6 }
    return {
      width,
      height: props.height,
      padding: [8, 8, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: props.sync, setSeries: false }, drag: { x: true, y: false, setScale: false }, points: { size: 6 } },
      scales: { x: { time: false, range: (_, min, max) => props.range ?? [min, max] }, y: { distr: props.log ? 3 : 1 } },
      axes: [
        { ...axis, size: 28, values: (_, ticks) => ticks.map((tick) => props.formatX(tick)) },
        { ...axis, size: 56, values: (_, ticks) => ticks.map((tick) => (tick === null ? '' : props.formatY(tick))) },
      ],
      series: [
        {},
        ...props.lines.map((one): uPlot.Series => {
          const stroke = css(`--curve-${one.color}`)
          return { label: one.label, stroke: one.ghost ? `${stroke}55` : stroke, width: one.ghost ? 1 : 1.75, spanGaps: true, points: { show: one.sparse ?? false, size: 5, fill: stroke } }
        }),
      ],
      hooks: {
        setSelect: [
          (self) => {
            if (self.select.width < 4) return
            zoom([self.posToVal(self.select.left, 'x'), self.posToVal(self.select.left + self.select.width, 'x')])
            self.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false)
          },
        ],
        setCursor: [(self) => readout(self.cursor.idx ?? null)],
      },
    }
  })
  const zoom = useEffectEvent((range: [number, number] | null) => props.onZoom(range))
  const tip = useRef<HTMLDivElement>(null)
  const readout = useEffectEvent((index: number | null) => {
    if (!tip.current) return
    const x = index === null ? undefined : props.x[index]
    const parts = props.lines.flatMap((line) => {
      const value = index === null || line.ghost ? null : line.values[index]
      return value === null || value === undefined ? [] : `${line.label} ${props.formatY(value)}`
    })
    tip.current.textContent = x === undefined || parts.length === 0 ? '' : `${props.formatX(x)} · ${parts.join(' · ')}`
  })
  const data = useEffectEvent((): uPlot.AlignedData => [props.x, ...props.lines.map((line) => line.values)])

  useEffect(() => {
    const element = holder.current
    if (!element) return
    const made = new uPlot(options(Math.max(element.clientWidth, 120)), data(), element)
    plot.current = made
    const reset = () => zoom(null)
    made.over.addEventListener('dblclick', reset)
    const resized = new ResizeObserver(() => made.setSize({ width: Math.max(element.clientWidth, 120), height: made.height }))
    resized.observe(element)
    return () => {
      resized.disconnect()
      plot.current = null
      made.destroy()
    }
  }, [shape])

  useEffect(() => {
    plot.current?.setData(data())
  }, [props.x, props.lines, props.range])

  return (
    <div>
      <div ref={tip} aria-hidden className="tabular h-4 truncate text-2xs text-muted" />
      <div ref={holder} role="img" aria-label={props.label} className="min-w-0 overflow-hidden" />
    </div>
  )
}
