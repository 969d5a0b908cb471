// The settings of step 2: where each stands in the configuration, and how it is asked for.

export type Value = string | number | boolean | null

interface Base {
  path: string
  /** What the backend takes when the key is absent. */
  initial: Value
  advanced?: boolean
  /** Methods that use it; all without. */
  methods?: string[]
}
export type FieldSpec = Base &
  ({ kind: 'number'; min?: number; max?: number; step?: number | 'any'; whole?: boolean } | { kind: 'choice'; choices: string[] } | { kind: 'flag' } | { kind: 'text' })

const LORA = ['sft', 'dpo', 'pretrain', 'classification']

export const FIELDS: FieldSpec[] = [
  { path: 'method', kind: 'choice', choices: ['sft', 'full', 'pretrain', 'dpo', 'classification'], initial: 'sft' },
  { path: 'training.num_train_epochs', kind: 'number', min: 0, step: 'any', initial: 1 },
  { path: 'training.learning_rate', kind: 'number', min: 0, step: 'any', initial: 2e-4 },
  { path: 'training.per_device_train_batch_size', kind: 'number', min: 1, whole: true, initial: 4 },
  { path: 'training.max_seq_length', kind: 'number', min: 1, whole: true, initial: 512 },
  { path: 'lora.r', kind: 'number', min: 1, whole: true, initial: 16, methods: LORA },
  { path: 'lora.lora_alpha', kind: 'number', min: 0, step: 'any', initial: 32, methods: LORA },
  { path: 'dpo.beta', kind: 'number', min: 0, step: 'any', initial: 0.1, methods: ['dpo'] },
  { path: 'dpo.loss_type', kind: 'choice', choices: ['sigmoid', 'hinge', 'ipo', 'robust'], initial: 'sigmoid', methods: ['dpo'] },
  { path: 'training.max_steps', kind: 'number', min: -1, whole: true, initial: -1, advanced: true },
  { path: 'training.gradient_accumulation_steps', kind: 'number', min: 1, whole: true, initial: 1, advanced: true },
  { path: 'training.lr_scheduler_type', kind: 'choice', choices: ['cosine', 'linear', 'constant', 'constant_with_warmup'], initial: 'cosine', advanced: true },
  { path: 'training.warmup_ratio', kind: 'number', min: 0, max: 1, step: 'any', initial: 0.03, advanced: true },
  { path: 'training.weight_decay', kind: 'number', min: 0, step: 'any', initial: 0, advanced: true },
  { path: 'training.max_grad_norm', kind: 'number', min: 0, step: 'any', initial: 1, advanced: true },
  { path: 'training.optim', kind: 'choice', choices: ['adamw_torch', 'adamw_8bit'], initial: 'adamw_torch', advanced: true },
  { path: 'training.base_dtype', kind: 'choice', choices: ['auto', 'f32', 'bf16', 'f16'], initial: 'auto', advanced: true },
  { path: 'training.eval_steps', kind: 'number', min: 0, whole: true, initial: 50, advanced: true },
  { path: 'training.save_steps', kind: 'number', min: 0, whole: true, initial: 50, advanced: true },
  { path: 'training.save_total_limit', kind: 'number', min: 0, whole: true, initial: 2, advanced: true },
  { path: 'training.early_stopping_patience', kind: 'number', min: 0, whole: true, initial: 0, advanced: true },
  { path: 'training.seed', kind: 'number', min: 0, whole: true, initial: 42, advanced: true },
  { path: 'lora.lora_dropout', kind: 'number', min: 0, max: 1, step: 'any', initial: 0, advanced: true, methods: LORA },
  { path: 'lora.target_modules', kind: 'text', initial: 'all-linear', advanced: true, methods: LORA },
  { path: 'training.load_best_model_at_end', kind: 'flag', initial: false, advanced: true },
  { path: 'training.packing', kind: 'flag', initial: false, advanced: true },
  { path: 'training.gradient_checkpointing', kind: 'flag', initial: false, advanced: true },
  { path: 'training.shuffle', kind: 'flag', initial: true, advanced: true },
  { path: 'training.group_by_length', kind: 'flag', initial: false, advanced: true },
  { path: 'lora.use_rslora', kind: 'flag', initial: false, advanced: true, methods: LORA },
  { path: 'lora.use_dora', kind: 'flag', initial: false, advanced: true, methods: LORA },
]

export type Config = Record<string, unknown>

const isObject = (value: unknown): value is Config => typeof value === 'object' && value !== null && !Array.isArray(value)

export function read(config: Config, path: string): unknown {
  return path.split('.').reduce<unknown>((value, key) => (isObject(value) ? value[key] : undefined), config)
}

/** A configuration with one value changed; `undefined` takes the key away. */
export function write(config: Config, path: string, value: unknown): Config {
  const [key = '', ...rest] = path.split('.')
  const old = config[key]
  const next = rest.length > 0 ? write(isObject(old) ? old : {}, rest.join('.'), value) : value
  if (next === undefined || (isObject(next) && rest.length > 0 && Object.keys(next).length === 0)) {
    const { [key]: _, ...others } = config
    return others
  }
  return { ...config, [key]: next }
}

/** What is shown for a field: modules as a list with commas. */
export function shown(field: FieldSpec, config: Config): Value {
  const value = read(config, field.path)
  if (Array.isArray(value)) return value.join(', ')
  return (value as Value | undefined) ?? field.initial
}

/** What a field's text means. Numbers that are none are kept as they are, for the rules to refuse. */
export function meaning(field: FieldSpec, text: string): unknown {
  const trimmed = text.trim()
  if (trimmed === '') return undefined
  if (field.kind === 'number') return Number.isFinite(Number(trimmed)) ? Number(trimmed) : trimmed
  if (field.path === 'lora.target_modules' && trimmed !== 'all-linear') return trimmed.split(/[\s,]+/).filter(Boolean)
  return trimmed
}

/** Presets that the configuration follows, so that the chosen one shows. */
export function follows(config: Config, preset: Config): boolean {
  return Object.entries(preset).every(([key, value]) => (isObject(value) ? isObject(config[key]) && follows(config[key], value) : config[key] === value))
}

/** Simple YAML of plain JSON, as `hone train` takes it. */
export function toYaml(value: unknown, depth = 0): string {
  const pad = '  '.repeat(depth)
  if (isObject(value)) {
    return Object.entries(value)
      .filter(([, v]) => v !== undefined && v !== null)
      .map(([key, v]) => (isObject(v) && Object.keys(v).length > 0 ? `${pad}${key}:\n${toYaml(v, depth + 1)}` : `${pad}${key}: ${isObject(v) ? '{}' : JSON.stringify(v)}`))
      .join('\n')
  }
  return `${pad}${JSON.stringify(value)}`
}
