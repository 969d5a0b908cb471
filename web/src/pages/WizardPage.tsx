import { useQuery } from '@tanstack/react-query'
import { Link, Navigate, useParams } from '@tanstack/react-router'
import { useTranslation } from 'react-i18next'
import { packageQuery, versionQuery } from '@/api/queries'
import { Loaded, PageHeader, SkeletonRows } from '@/ui/layout'
import { TrainingPackageWizard } from '@/wizard/TrainingPackageWizard'
import { useTitle } from './useTitle'

export function WizardPage() {
  const { t } = useTranslation()
  const { id, version } = useParams({ from: '/app/packages/$id/edit/$version' })
  const one = useQuery(packageQuery(id))
  // The newest there is; while it is edited only saving asks the server.
  const draft = useQuery({ ...versionQuery(version), refetchOnMount: 'always', refetchOnWindowFocus: false, refetchOnReconnect: false, staleTime: 0 })
  useTitle(one.data?.name)
  return (
    <>
      <PageHeader
        above={
          <>
            <Link to="/packages" className="hover:underline">
              {t('nav.packages')}
            </Link>{' '}
            /{' '}
            <Link to="/packages/$id" params={{ id }} className="hover:underline">
              {one.data?.name ?? '…'}
            </Link>
          </>
        }
        title={draft.data?.name ?? t('wizard.title')}
        lead={t('wizard.lead')}
      />
      <Loaded query={draft.isFetchedAfterMount ? draft : { ...draft, data: undefined, error: draft.error }} skeleton={<SkeletonRows rows={8} />}>
        {(loaded) => (loaded.status === 'draft' ? <TrainingPackageWizard key={loaded.id} version={loaded} packageId={id} /> : <Navigate to="/packages/$id" params={{ id }} replace />)}
      </Loaded>
    </>
  )
}
