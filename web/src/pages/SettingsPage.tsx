import { useNavigate, useSearch } from '@tanstack/react-router'
import { useTranslation } from 'react-i18next'
import { LANGUAGES, setLanguage, type Language } from '@/i18n'
import { setTheme, THEMES, useTheme } from '@/lib/theme'
import type { SettingsTab } from '@/router'
import { Audit } from '@/settings/Audit'
import { Keys } from '@/settings/Keys'
import { Webhooks } from '@/settings/Webhooks'
import { Segmented } from '@/ui/form'
import { Card, PageHeader } from '@/ui/layout'
import { Tabs } from '@/ui/Tabs'
import { useTitle } from './useTitle'

export function SettingsPage() {
  const { t } = useTranslation()
  const { tab } = useSearch({ from: '/app/settings' })
  const navigate = useNavigate({ from: '/settings' })
  useTitle(t('nav.settings'))
  return (
    <>
      <PageHeader title={t('nav.settings')} />
      <Tabs<SettingsTab>
        value={tab ?? 'keys'}
        onChange={(next) => void navigate({ search: { tab: next === 'keys' ? undefined : next }, replace: true })}
        tabs={[
          { value: 'keys', label: t('settings.keys'), content: <Keys /> },
          { value: 'webhooks', label: t('settings.webhooks'), content: <Webhooks /> },
          { value: 'audit', label: t('settings.audit'), content: <Audit /> },
          { value: 'appearance', label: t('settings.appearance'), content: <Appearance /> },
        ]}
      />
    </>
  )
}

function Appearance() {
  const { t, i18n } = useTranslation()
  const theme = useTheme()
  return (
    <Card>
      <div className="flex flex-col gap-4">
        <div className="flex flex-wrap items-center justify-between gap-3">
          <span className="font-medium">{t('settings.theme')}</span>
          <Segmented label={t('settings.theme')} value={theme} onChange={setTheme} options={THEMES.map((value) => ({ value, label: t(`theme.${value}`) }))} />
        </div>
        <div className="flex flex-wrap items-center justify-between gap-3">
          <span className="font-medium">{t('settings.language')}</span>
          <Segmented label={t('settings.language')} value={i18n.language as Language} onChange={(value) => void setLanguage(value)} options={LANGUAGES.map((value) => ({ value, label: { en: 'English', ko: '한국어' }[value] }))} />
        </div>
      </div>
    </Card>
  )
}
