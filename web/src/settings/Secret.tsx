import { Check, Copy } from 'lucide-react'
import { useState } from 'react'
import { useTranslation } from 'react-i18next'
import { Button } from '@/ui/Button'
import { Input } from '@/ui/form'
import { Notice } from '@/ui/layout'
import { Dialog } from '@/ui/overlay'

/** Shown once: the server keeps only a digest of it. */
export function Secret({ title, value, onClose }: { title: string; value: string; onClose: () => void }) {
  const { t } = useTranslation()
  const [copied, setCopied] = useState(false)
  return (
    <Dialog open onClose={onClose} title={title} footer={<Button variant="primary" onClick={onClose}>{t('secret.done')}</Button>}>
      <div className="flex flex-col gap-3">
        <Notice tone="warning" title={t('secret.once')} />
        <div className="flex gap-2">
          <Input readOnly aria-label={title} value={value} onFocus={(event) => event.target.select()} className="font-mono" />
          <Button onClick={() => void navigator.clipboard.writeText(value).then(() => setCopied(true))}>
            {copied ? <Check aria-hidden /> : <Copy aria-hidden />}
            {t(copied ? 'secret.copied' : 'secret.copy')}
          </Button>
        </div>
      </div>
    </Dialog>
  )
}
