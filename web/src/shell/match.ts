/** Those whose title has the letters of the query in their order, best first: whole words, then the densest. */
export function match<T extends { title: string }>(items: T[], query: string): T[] {
  const wanted = query.trim().toLowerCase()
  if (!wanted) return items
  const scored = items.flatMap((item) => {
    const score = rate(item.title.toLowerCase(), wanted)
    return score === null ? [] : [{ item, score }]
  })
  return scored.toSorted((a, b) => a.score - b.score).map(({ item }) => item)
}

/** Lower is better; null when it does not match. */
function rate(title: string, wanted: string): number | null {
  const whole = title.indexOf(wanted)
  if (whole >= 0) return whole === 0 || title[whole - 1] === ' ' || title[whole - 1] === '-' ? whole / 1000 : 1 + whole / 1000
  let [at, gaps] = [-1, 0]
  for (const letter of wanted.replaceAll(' ', '')) {
    const next = title.indexOf(letter, at + 1)
    if (next < 0) return null
    if (at >= 0) gaps += next - at - 1
    at = next
  }
  return 2 + gaps
}
