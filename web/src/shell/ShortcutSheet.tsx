import { useTranslation } from 'react-i18next'
import { Dialog } from '@/ui/overlay'
import { PLACES } from './navigation'

const Keys = ({ keys }: { keys: string }) => (
  <span className="flex gap-1">
    {keys.split(' ').map((key) => (
      <kbd key={key} className="min-w-6 rounded border border-line-strong bg-sunken px-1.5 py-0.5 text-center font-sans text-xs">
        {key}
      </kbd>
    ))}
  </span>
)

export function ShortcutSheet({ onClose }: { onClose: () => void }) {
  const { t } = useTranslation()
  const rows: [string, string][] = [
    ['⌘ K', t('palette.title')],
    ['?', t('shortcuts.title')],
    ...PLACES.map((place): [string, string] => [`g ${place.key}`, t('shortcuts.go', { place: t(`nav.${place.name}`) })]),
    ['/', t('shortcuts.search')],
    ['n', t('shortcuts.create')],
    ['Esc', t('shortcuts.close')],
  ]
  return (
    <Dialog open onClose={onClose} title={t('shortcuts.title')}>
      <ul className="mb-4 grid gap-x-8 gap-y-2 sm:grid-cols-2">
        {rows.map(([keys, what]) => (
          <li key={keys} className="flex items-center justify-between gap-3">
            <span>{what}</span>
            <Keys keys={keys} />
          </li>
        ))}
      </ul>
    </Dialog>
  )
}
