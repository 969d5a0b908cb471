import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import en from '@/i18n/en'
import ko from '@/i18n/ko'

type Tree = { [key: string]: string | Tree }

const flat = (tree: Tree, prefix = ''): [string, string][] =>
  Object.entries(tree).flatMap(([key, value]) => (typeof value === 'string' ? [[prefix + key, value] as [string, string]] : flat(value, `${prefix}${key}.`)))

const [english, korean] = [new Map(flat(en)), new Map(flat(ko))]
/** English has two forms of a number, Korean one. */
const base = (key: string) => key.replace(/_(one|other)$/, '')

const source = join(__dirname, '../src')
const files = readdirSync(source, { recursive: true }).map(String).filter((name) => /\.tsx?$/.test(name) && !/^(i18n|api\/generated)\//.test(name))
const code = files.map((name) => readFileSync(join(source, name), 'utf8')).join('\n')

describe('the texts of both languages', () => {
  it('have the same keys', () => {
    const keys = (texts: Map<string, string>) => [...new Set([...texts.keys()].map(base))].toSorted()
    expect(keys(korean)).toEqual(keys(english))
  })

  it('name the same values', () => {
    const values = (text: string | undefined) => [...(text ?? '').matchAll(/\{\{(\w+)/g)].map((m) => m[1]).toSorted()
    for (const [key, text] of korean) expect(values(text), key).toEqual(values(english.get(key)))
  })

  it('say something, and in their own language', () => {
    for (const [key, text] of [...english, ...korean]) expect(text.trim(), key).not.toBe('')
    // Names and formulas are the same everywhere.
    const same = [...korean].filter(([key, text]) => text === english.get(key) && /[a-z]{4}/.test(text.replaceAll(/\{\{.*?\}\}/g, ''))).map(([key]) => key)
    expect(same).toEqual(['model.hub', 'setting.use_rslora.label', 'deploy.space', 'target.hf_space'].filter((key) => same.includes(key)))
  })

  it('are all there', () => {
    const asked = [...code.matchAll(/\bt\(\s*'([\w.]+)'/g)].map((m) => m[1] ?? '')
    const chosen = [...code.matchAll(/\bt\([^'`()]*\? '([\w.]+)' : '([\w.]+)'/g)].flatMap((m) => [m[1] ?? '', m[2] ?? ''])
    expect(asked.length).toBeGreaterThan(300)
    const missing = [...asked, ...chosen].filter((key) => !english.has(key) && !english.has(`${key}_other`))
    expect(missing).toEqual([])
  })

  it('are all used', () => {
    const literals = new Set([...code.matchAll(/'([\w]+(?:\.[\w]+)+)'/g)].map((m) => m[1]))
    const templates = [...code.matchAll(/`([\w]+\.(?:[\w.]|\$\{(?:[^{}]|\{[^{}]*\})*\})*)`/g)]
      .map((m) => m[1] ?? '')
      .filter((text) => text.includes('${'))
      .map((text) => new RegExp(`^${text.replace(/\$\{(?:[^{}]|\{[^{}]*\})*\}/g, '\u0000').replaceAll('.', '\\.').replaceAll('\u0000', '[\\w]+')}$`))
    const unused = [...english.keys()].map(base).filter((key) => !literals.has(key) && !templates.some((template) => template.test(key)))
    expect([...new Set(unused)]).toEqual([])
  })
})
