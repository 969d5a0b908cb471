import { useId, type ComponentProps, type ReactNode } from 'react'
import { cn } from '@/lib/cn'

const CONTROL = cn(
  'w-full rounded-md border border-line-strong bg-surface px-2.5 text-sm text-text placeholder:text-muted',
  'hover:border-muted focus-visible:outline-2 focus-visible:outline-offset-0 focus-visible:outline-ring',
  'aria-invalid:border-danger disabled:opacity-60',
)

export const Input = ({ className, ...rest }: ComponentProps<'input'>) => (
  <input autoComplete="off" spellCheck={false} {...rest} className={cn(CONTROL, 'h-8', className)} />
)

export const Textarea = ({ className, ...rest }: ComponentProps<'textarea'>) => (
  <textarea {...rest} className={cn(CONTROL, 'min-h-16 py-1.5', className)} />
)

/** The system's own list: it works with every keyboard, screen reader and thumb. */
export const Select = ({ className, children, ...rest }: ComponentProps<'select'>) => (
  <select {...rest} className={cn(CONTROL, 'h-8 pr-1', className)}>
    {children}
  </select>
)

export interface FieldProps {
  label: string
  help?: ReactNode
  error?: string
  warning?: string
  required?: boolean
  className?: string
  /** Gets the attributes that tie the control to its label and messages. */
  children: (control: { id: string; 'aria-describedby'?: string; 'aria-invalid'?: true; 'aria-required'?: true }) => ReactNode
}

export function Field({ label, help, error, warning, required, className, children }: FieldProps) {
  const id = useId()
  const described = [help && `${id}-help`, error && `${id}-error`, warning && `${id}-warning`].filter(Boolean).join(' ')
  return (
    <div className={cn('flex min-w-0 flex-col gap-1', className)}>
      <label htmlFor={id} className="text-xs font-medium">
        {label}
        {required && (
          <span aria-hidden className="text-danger">
            {' *'}
          </span>
        )}
      </label>
      {children({
        id,
        'aria-describedby': described || undefined,
        'aria-invalid': error ? true : undefined,
        'aria-required': required ? true : undefined,
      })}
      {error && (
        <p id={`${id}-error`} className="text-xs text-danger">
          {error}
        </p>
      )}
      {warning && (
        <p id={`${id}-warning`} className="text-xs text-warning">
          {warning}
        </p>
      )}
      {help && (
        <p id={`${id}-help`} className="text-xs text-muted">
          {help}
        </p>
      )}
    </div>
  )
}

export function Check({ label, help, ...rest }: Omit<ComponentProps<'input'>, 'type'> & { label: string; help?: string }) {
  const id = useId()
  return (
    <div className="flex items-start gap-2">
      <input id={id} type="checkbox" aria-describedby={help ? `${id}-help` : undefined} {...rest} className="mt-0.5 size-4 accent-(--accent)" />
      <div className="min-w-0">
        <label htmlFor={id} className="text-sm">
          {label}
        </label>
        {help && (
          <p id={`${id}-help`} className="text-xs text-muted">
            {help}
          </p>
        )}
      </div>
    </div>
  )
}

/** One of a few: a row of buttons that behaves as radio buttons. */
export function Segmented<T extends string>(props: {
  label: string
  value: T
  options: readonly { value: T; label: ReactNode; title?: string }[]
  onChange: (value: T) => void
}) {
  const name = useId()
  return (
    <fieldset className="inline-flex rounded-md border border-line-strong bg-surface p-0.5">
      <legend className="sr-only">{props.label}</legend>
      {props.options.map((option) => (
        <label
          key={option.value}
          title={option.title}
          className={cn(
            'flex h-6 items-center rounded-sm px-2 text-xs font-medium whitespace-nowrap has-focus-visible:outline-2 has-focus-visible:outline-ring [&_svg]:size-3.5',
            option.value === props.value ? 'bg-accent-soft text-accent-text' : 'cursor-pointer text-muted hover:text-text',
          )}
        >
          <input
            type="radio"
            name={name}
            className="sr-only"
            checked={option.value === props.value}
            onChange={() => props.onChange(option.value)}
          />
          {option.label}
        </label>
      ))}
    </fieldset>
  )
}
