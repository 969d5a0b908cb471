// What a browser loads before the first page shows, gzipped, and a limit to it: the entry with everything it imports
// statically. Exits 1 above the limit.
import { readFileSync } from 'node:fs'
import { gzipSync } from 'node:zlib'

const limit = 200 * 1024
const dist = new URL('../dist/', import.meta.url)
const manifest = JSON.parse(readFileSync(new URL('manifest.json', dist), 'utf8'))
const size = (file) => gzipSync(readFileSync(new URL(file, dist)), { level: 9 }).length
const kib = (bytes) => `${(bytes / 1024).toFixed(1)} KiB`

const initial = new Set()
const visit = (key) => {
  const chunk = manifest[key]
  if (initial.has(chunk.file)) return
  initial.add(chunk.file)
  for (const other of chunk.imports ?? []) visit(other)
}
const entry = Object.keys(manifest).find((key) => manifest[key].isEntry)
visit(entry)

const files = [...new Set(Object.values(manifest).map((chunk) => chunk.file))].filter((file) => file.endsWith('.js'))
for (const file of files.toSorted((a, b) => size(b) - size(a))) {
  console.log(`${initial.has(file) ? 'initial' : 'later  '} ${kib(size(file)).padStart(10)}  ${file}`)
}
const total = [...initial].reduce((sum, file) => sum + size(file), 0)
console.log(`initial JavaScript: ${kib(total)} gzipped, limit ${kib(limit)}`)
if (total > limit) {
  console.error('too much JavaScript before the first page; split it by route')
  process.exit(1)
}
