import { Toast } from '@base-ui/react/toast'
import { CircleCheck, CircleX, Info, X } from 'lucide-react'
import type { ReactNode } from 'react'
import { useTranslation } from 'react-i18next'
import { cn } from '@/lib/cn'
import { IconButton } from './Button'

const manager = Toast.createToastManager()

interface Message {
  title: string
  description?: string
  /** What a click on it does. */
  action?: { label: string; run: () => void }
}

const show = (type: 'success' | 'error' | 'info', { title, description, action }: Message) =>
  manager.add({
    title,
    description,
    type,
    timeout: type === 'error' ? 12_000 : 6_000,
    priority: type === 'error' ? 'high' : 'low',
    actionProps: action ? { children: action.label, onClick: action.run } : undefined,
  })

export const toast = {
  success: (message: Message) => show('success', message),
  error: (message: Message) => show('error', message),
  info: (message: Message) => show('info', message),
  /** A request that failed after a click. */
  failure: (title: string, error: unknown) => show('error', { title, description: error instanceof Error ? error.message : String(error) }),
}

const ICONS = { success: CircleCheck, error: CircleX, info: Info } as const

function List() {
  const { t } = useTranslation()
  const { toasts } = Toast.useToastManager()
  return toasts.map((item) => {
    const type = item.type === 'error' || item.type === 'success' ? item.type : 'info'
    const Icon = ICONS[type]
    return (
      <Toast.Root key={item.id} toast={item} className="pop-in pointer-events-auto flex items-start gap-2.5 rounded-lg border bg-raised px-3 py-2.5 shadow-pop">
        <Icon aria-hidden className={cn('mt-0.5 size-4 shrink-0', { success: 'text-success', error: 'text-danger', info: 'text-info' }[type])} />
        <Toast.Content className="min-w-0 flex-1">
          <Toast.Title className="text-sm font-medium" />
          <Toast.Description className="break-words text-muted" />
          {item.actionProps && <Toast.Action className="mt-1 text-sm font-medium text-accent-text hover:underline" />}
        </Toast.Content>
        <Toast.Close render={<IconButton label={t('actions.close')} />}>
          <X aria-hidden />
        </Toast.Close>
      </Toast.Root>
    )
  })
}

export function Toasts({ children }: { children: ReactNode }) {
  return (
    <Toast.Provider toastManager={manager} limit={4}>
      {children}
      <Toast.Portal>
        <Toast.Viewport className="pointer-events-none fixed right-4 bottom-4 z-60 flex w-[calc(100vw-2rem)] max-w-sm flex-col gap-2">
          <List />
        </Toast.Viewport>
      </Toast.Portal>
    </Toast.Provider>
  )
}
