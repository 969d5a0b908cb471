// Rows of a dataset as turns of a conversation, with what of them is trained on.
import type { Schemas } from '@/api/client'

export interface Turn {
  role: string
  text: string
  /** The loss is of its tokens. */
  trained: boolean
  /** Preference pairs: the answer to prefer, and the one not to. */
  side?: 'chosen' | 'rejected'
}

type Json = Record<string, unknown>
const isObject = (value: unknown): value is Json => typeof value === 'object' && value !== null && !Array.isArray(value)

/** A content is a text or a list of parts; what is no text is shown as it stands. */
function textOf(content: unknown): string {
  if (typeof content === 'string') return content
  if (content === null || content === undefined) return ''
  if (Array.isArray(content)) return content.map((part) => (isObject(part) && typeof part['text'] === 'string' ? part['text'] : JSON.stringify(part))).join('')
  return JSON.stringify(content, null, 2)
}

function turn(message: unknown, side?: Turn['side']): Turn {
  if (!isObject(message)) return { role: 'unknown', text: textOf(message), trained: false, side }
  const role = String(message['role'] ?? 'unknown')
  const calls = message['tool_calls']
  const text = [textOf(message['content']), calls ? JSON.stringify(calls, null, 2) : ''].filter(Boolean).join('\n')
  return { role, text, trained: role === 'assistant' && message['weight'] !== 0, side }
}

const messages = (value: unknown, side?: Turn['side']): Turn[] =>
  Array.isArray(value) ? value.map((message) => ({ ...turn(message, side), ...(side ? {} : { trained: isTrained(message) }) })) : []

const isTrained = (message: unknown): boolean => turn(message).trained

const sideOf = (value: unknown, side: 'chosen' | 'rejected'): Turn[] =>
  Array.isArray(value) ? value.slice(-1).map((message) => turn(message, side)) : [{ role: 'assistant', text: textOf(value), trained: true, side }]

export function turns(format: Schemas['DatasetFormat'], row: unknown): Turn[] {
  if (typeof row === 'string') return [{ role: 'text', text: row, trained: true }]
  if (!isObject(row)) return [{ role: 'unknown', text: JSON.stringify(row), trained: false }]
  const user = (text: unknown): Turn => ({ role: 'user', text: textOf(text), trained: false })
  switch (format) {
    case 'chat_jsonl':
      return messages(row['messages'])
    case 'instruction_jsonl': {
      const answer: Turn = { role: 'assistant', text: textOf(row['output'] ?? row['response'] ?? row['completion']), trained: true }
      const question = [row['instruction'] ?? row['prompt'], row['input']].map(textOf).filter(Boolean).join('\n\n')
      return [user(question), answer]
    }
    case 'preference_jsonl': {
      const input = row['input']
      const prompt = isObject(input) ? messages(input['messages']) : Array.isArray(row['prompt']) ? messages(row['prompt']) : row['prompt'] === undefined ? [] : [user(row['prompt'])]
      return [
        ...prompt.map((one) => ({ ...one, trained: false })),
        ...sideOf(row['preferred_output'] ?? row['chosen'], 'chosen'),
        ...sideOf(row['non_preferred_output'] ?? row['rejected'], 'rejected'),
      ]
    }
    case 'labelled_jsonl':
      return [user(row['text']), { role: 'label', text: textOf(row['label']), trained: true }]
    default:
      return [{ role: 'text', text: textOf(row['text'] ?? row), trained: true }]
  }
}
