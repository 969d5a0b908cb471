import { useQuery } from '@tanstack/react-query'
import { ChevronRight } from 'lucide-react'
import { useState } from 'react'
import { useTranslation } from 'react-i18next'
import { presetsQuery } from '@/api/queries'
import { cn } from '@/lib/cn'
import { Check, Field, Input, Select } from '@/ui/form'
import { Loaded } from '@/ui/layout'
import { FIELDS, follows, meaning, shown, toYaml, write, type Config, type FieldSpec } from './fields'
import type { Messages } from './steps'
import type { StepProps } from './TrainingPackageWizard'

export function ConfigStep({ draft, errors }: StepProps) {
  const { t } = useTranslation()
  const config = (draft.content.steps.config ?? {}) as Config
  const method = String(config['method'] ?? 'sft')
  const fields = FIELDS.filter((field) => !field.methods || field.methods.includes(method))
  const set = (field: FieldSpec, value: unknown) => draft.setStep('config', write(config, field.path, value))
  // A mistake among the advanced settings must be seen.
  const hidden = fields.some((field) => field.advanced && errors[field.path])
  const [wanted, setWanted] = useState(false)
  const known = new Set(fields.map((field) => field.path))
  const others = Object.entries(errors).filter(([path]) => path !== '' && !known.has(path))

  return (
    <div className="grid gap-5 lg:grid-cols-[minmax(0,1fr)_17rem]">
      <div className="flex min-w-0 flex-col gap-4">
        <Presets config={config} choose={(preset) => draft.setStep('config', preset)} />
        <div className="grid gap-x-4 gap-y-3 sm:grid-cols-2">
          {fields.filter((field) => !field.advanced).map((field) => (
            <Setting key={field.path} field={field} config={config} errors={errors} set={set} />
          ))}
        </div>
        <details open={wanted || hidden} onToggle={(event) => setWanted(event.currentTarget.open)} className="group rounded-lg border">
          <summary className="flex h-9 list-none items-center gap-1.5 px-3 font-medium">
            <ChevronRight aria-hidden className="size-4 text-muted transition-transform group-open:rotate-90" />
            {t('config.advanced')}
          </summary>
          <div className="grid gap-x-4 gap-y-3 border-t p-3 sm:grid-cols-2">
            {fields.filter((field) => field.advanced).map((field) => (
              <Setting key={field.path} field={field} config={config} errors={errors} set={set} />
            ))}
          </div>
        </details>
        {others.map(([path, text]) => (
          <p key={path} className="text-xs text-danger">
            <code className="font-mono">{path}</code>: {text}
          </p>
        ))}
      </div>
      <aside aria-label={t('config.preview')} className="min-w-0">
        <p className="mb-1 text-xs font-medium">{t('config.preview')}</p>
        <pre tabIndex={0} aria-label={t('config.preview')} className="max-h-96 overflow-auto rounded-lg border bg-sunken p-3 font-mono text-xs leading-5">
          {toYaml(config) || t('config.defaults')}
        </pre>
        <p className="mt-1 text-xs text-muted">{t('config.previewHelp')}</p>
      </aside>
    </div>
  )
}

function Presets({ config, choose }: { config: Config; choose: (config: Config) => void }) {
  const { t } = useTranslation()
  return (
    <Loaded query={useQuery(presetsQuery)}>
      {(presets) => (
        <fieldset>
          <legend className="mb-1 text-xs font-medium">{t('config.presets')}</legend>
          <div className="grid gap-2 sm:grid-cols-3">
            {presets.map((preset) => {
              const chosen = Object.keys(config).length > 0 && follows(config, preset.config as Config)
              const known = t(`preset.${preset.id}`, { defaultValue: preset.name })
              return (
                <button
                  key={preset.id}
                  type="button"
                  aria-pressed={chosen}
                  onClick={() => choose(preset.config as Config)}
                  className={cn('rounded-lg border p-3 text-left hover:border-muted', chosen && 'border-accent bg-accent-soft')}
                >
                  <span className="block font-medium">{known}</span>
                  <span className="block text-xs text-muted">{t(`presetLead.${preset.id}`, { defaultValue: preset.description })}</span>
                </button>
              )
            })}
          </div>
        </fieldset>
      )}
    </Loaded>
  )
}

interface SettingProps {
  field: FieldSpec
  config: Config
  errors: Messages
  set: (field: FieldSpec, value: unknown) => void
}

function Setting({ field, config, errors, set }: SettingProps) {
  const { t } = useTranslation()
  const key = field.path.split('.').at(-1) ?? field.path
  const [label, help] = [t(`setting.${key}.label`), t(`setting.${key}.help`)]
  const value = shown(field, config)
  if (field.kind === 'flag') {
    return <Check label={label} help={help} checked={value === true} onChange={(event) => set(field, event.target.checked)} />
  }
  return (
    <Field label={label} help={help} error={errors[field.path]}>
      {(control) =>
        field.kind === 'choice' ? (
          <Select {...control} value={String(value)} onChange={(event) => set(field, event.target.value)}>
            {field.choices.map((choice) => (
              <option key={choice} value={choice}>
                {key === 'method' ? t(`method.${choice}`) : choice}
              </option>
            ))}
          </Select>
        ) : (
          <TextSetting control={control} field={field} value={value} set={set} />
        )
      }
    </Field>
  )
}

/** Keeps what is typed as it is typed (`1e-`), and passes on what it means. */
function TextSetting({ control, field, value, set }: { control: object; field: FieldSpec; value: unknown; set: SettingProps['set'] }) {
  const [typed, setTyped] = useState<string | null>(null)
  const limits = field.kind === 'number' ? { inputMode: 'decimal' as const } : {}
  return (
    <Input
      {...control}
      {...limits}
      value={typed ?? String(value)}
      onChange={(event) => {
        setTyped(event.target.value)
        set(field, meaning(field, event.target.value))
      }}
      onBlur={() => setTyped(null)}
    />
  )
}
