// Writes FILE.br and FILE.gz beside every file of dist/ that gets smaller, for the backend to send as they are.
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { brotliCompressSync, constants, gzipSync } from 'node:zlib'

const dist = new URL('../dist/', import.meta.url).pathname
const texts = /\.(js|css|html|svg|json)$/

for (const name of readdirSync(dist, { recursive: true })) {
  const path = join(dist, String(name))
  if (!texts.test(path) || !statSync(path).isFile()) continue
  const content = readFileSync(path)
  const quality = { params: { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_SIZE_HINT]: content.length } }
  const forms = { br: brotliCompressSync(content, quality), gz: gzipSync(content, { level: 9 }) }
  for (const [ending, bytes] of Object.entries(forms)) {
    if (bytes.length < content.length) writeFileSync(`${path}.${ending}`, bytes)
  }
}
