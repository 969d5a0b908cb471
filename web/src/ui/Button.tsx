import { LoaderCircle } from 'lucide-react'
import type { ComponentProps } from 'react'
import { cn } from '@/lib/cn'

const VARIANTS = {
  primary: 'bg-accent text-on-accent hover:bg-accent-hover border-transparent',
  secondary: 'bg-surface text-text hover:bg-hover border-line-strong',
  ghost: 'bg-transparent text-muted hover:text-text hover:bg-hover border-transparent',
  danger: 'bg-surface text-danger hover:bg-danger-soft border-line-strong',
} as const

const SIZES = { sm: 'h-7 px-2 gap-1.5 text-xs', md: 'h-8 px-3 gap-2 text-sm', icon: 'size-7 justify-center' } as const

interface Look {
  variant?: keyof typeof VARIANTS
  size?: keyof typeof SIZES
}

export const buttonClass = ({ variant = 'secondary', size = 'md' }: Look = {}): string =>
  cn(
    'inline-flex items-center justify-center rounded-md border font-medium whitespace-nowrap select-none transition-colors',
    'disabled:opacity-50 disabled:pointer-events-none [&_svg]:size-4 [&_svg]:shrink-0',
    VARIANTS[variant],
    SIZES[size],
  )

type Props = ComponentProps<'button'> & Look & { busy?: boolean }

export function Button({ variant, size, busy, className, children, disabled, ...rest }: Props) {
  return (
    <button type="button" {...rest} disabled={disabled || busy} aria-busy={busy || undefined} className={cn(buttonClass({ variant, size }), className)}>
      {busy && <LoaderCircle aria-hidden className="animate-spin" />}
      {children}
    </button>
  )
}

/** A button with a picture only; the label is for those who cannot see it. */
export function IconButton({ label, ...rest }: Props & { label: string }) {
  return <Button size="icon" variant="ghost" aria-label={label} title={label} {...rest} />
}
