import { useQueryClient } from '@tanstack/react-query'
import { FileText, Upload, X } from 'lucide-react'
import { useEffect, useId, useRef, useState, type DragEvent } from 'react'
import { useTranslation } from 'react-i18next'
import { ApiError } from '@/api/client'
import type { Dataset } from '@/api/types'
import { useFormat } from '@/i18n/useFormat'
import { cn } from '@/lib/cn'
import { Button, IconButton } from '@/ui/Button'
import { Field, Input } from '@/ui/form'
import { Notice, Progress } from '@/ui/layout'
import { Dialog } from '@/ui/overlay'
import { toast } from '@/ui/toast'
import { nameOf, recall, upload, type Progress as Sent } from './upload'

interface Props {
  onClose: () => void
  onReady?: (dataset: Dataset) => void
}

export function UploadDialog({ onClose, onReady }: Props) {
  const { t } = useTranslation()
  const format = useFormat()
  const client = useQueryClient()
  const [train, setTrain] = useState<File | null>(null)
  const [validation, setValidation] = useState<File | null>(null)
  const [name, setName] = useState('')
  const [sent, setSent] = useState<Sent | null>(null)
  const [error, setError] = useState<unknown>(null)
  const control = useRef<AbortController | null>(null)
  useEffect(() => () => control.current?.abort(), [])

  async function submit() {
    if (!train) return
    control.current = new AbortController()
    setError(null)
    setSent({ sent: 0, total: train.size, phase: 'sending' })
    try {
      const dataset = await upload({ name, train, validation, signal: control.current.signal, onProgress: setSent })
      toast.success({ title: t('upload.done', { name: dataset.name }), description: t('datasets.rows', { count: dataset.rows }) })
      onReady?.(dataset)
      onClose()
    } catch (failure) {
      if (!(failure instanceof DOMException)) setError(failure)
    } finally {
      setSent(null)
      await client.invalidateQueries({ queryKey: ['datasets'] })
    }
  }

  return (
    <Dialog
      open
      onClose={onClose}
      title={t('datasets.upload')}
      description={t('upload.lead')}
      footer={
        <>
          <Button onClick={onClose}>{t(sent ? 'upload.stop' : 'actions.back')}</Button>
          <Button variant="primary" disabled={!train || !name} busy={sent !== null} onClick={() => void submit()}>
            <Upload aria-hidden />
            {t(train && recall(train) ? 'upload.goOn' : 'upload.start')}
          </Button>
        </>
      }
    >
      <div className="flex flex-col gap-4">
        <Drop
          label={t('upload.train')}
          file={train}
          onFile={(file) => {
            setTrain(file)
            setError(null)
            if (file && !name) setName(nameOf(file))
          }}
        />
        <Drop label={t('upload.validation')} file={validation} onFile={setValidation} small />
        <Field label={t('upload.name')} required>
          {(field) => <Input {...field} value={name} onChange={(event) => setName(event.target.value)} />}
        </Field>
        {sent && (
          <div role="status" className="flex flex-col gap-1">
            <Progress value={sent.phase === 'checking' ? null : sent.sent / sent.total} label={t('upload.progress')} />
            <p className="tabular text-xs text-muted">{sent.phase === 'checking' ? t('upload.checking') : t('upload.sent', { sent: format.bytes(sent.sent), total: format.bytes(sent.total) })}</p>
          </div>
        )}
        {error !== null && <Refusal error={error} />}
      </div>
    </Dialog>
  )
}

/** What is wrong with the rows, with their lines. */
function Refusal({ error }: { error: unknown }) {
  const { t } = useTranslation()
  const found = error instanceof ApiError ? (error.problem?.errors ?? []) : []
  return (
    <Notice tone="danger" title={t('upload.refused')}>
      <p>{error instanceof Error ? error.message : String(error)}</p>
      {found.length > 0 && (
        <ul className="mt-1 max-h-48 list-disc overflow-y-auto pl-4">
          {found.map((one) => (
            <li key={`${one.path}${one.message}`}>
              <code className="font-mono text-xs">{one.path}</code>: {one.message}
            </li>
          ))}
        </ul>
      )}
    </Notice>
  )
}

function Drop({ label, file, onFile, small }: { label: string; file: File | null; onFile: (file: File | null) => void; small?: boolean }) {
  const { t } = useTranslation()
  const format = useFormat()
  const id = useId()
  const [over, setOver] = useState(false)
  const drag = (inside: boolean) => (event: DragEvent) => {
    event.preventDefault()
    setOver(inside)
  }
  if (file) {
    return (
      <div className="flex items-center gap-3 rounded-lg border p-3">
        <FileText aria-hidden className="size-4 text-muted" />
        <span className="min-w-0 flex-1">
          <span className="block text-xs text-muted">{label}</span>
          <span className="block truncate font-medium">{file.name}</span>
        </span>
        <span className="tabular text-xs text-muted">{format.bytes(file.size)}</span>
        <IconButton label={t('upload.remove', { name: file.name })} onClick={() => onFile(null)}>
          <X aria-hidden />
        </IconButton>
      </div>
    )
  }
  return (
    <label
      htmlFor={id}
      onDragOver={drag(true)}
      onDragLeave={drag(false)}
      onDrop={(event) => {
        drag(false)(event)
        onFile(event.dataTransfer.files[0] ?? null)
      }}
      className={cn(
        'flex cursor-pointer flex-col items-center gap-1 rounded-lg border border-dashed border-line-strong text-center hover:border-muted has-focus-visible:outline-2 has-focus-visible:outline-ring',
        small ? 'p-3' : 'p-6',
        over && 'border-accent bg-accent-soft',
      )}
    >
      <input id={id} type="file" accept=".jsonl,.json,.txt,.csv,.parquet,.zip" className="sr-only" onChange={(event) => onFile(event.target.files?.[0] ?? null)} />
      {!small && <Upload aria-hidden className="size-5 text-muted" strokeWidth={1.5} />}
      <span className="font-medium">{label}</span>
      <span className="text-xs text-muted">{t('upload.drop')}</span>
    </label>
  )
}
