import type { Schemas } from './client'

export type Job = Schemas['JobView']
export type JobState = Schemas['JobState']
export type Dataset = Schemas['DatasetView']
export type Model = Schemas['ModelView']
export type Package = Schemas['PackageView']
export type Version = Schemas['VersionView']
export type Steps = Schemas['Steps']
export type Draft = Schemas['Draft']
export type TrainingConfig = Schemas['TrainingConfig']
export type Preset = Schemas['Preset']
export type GpuConfig = Schemas['GpuConfig']
export type MetricPoint = Schemas['MetricPoint']
export type StreamMessage = Schemas['StreamMessage']
export type Notification = Schemas['NotificationView']
export type Artifact = Schemas['ModelArtifactView']
export type Me = Schemas['Me']

const OVER: readonly JobState[] = ['succeeded', 'failed', 'cancelled']

export const isOver = (state: JobState): boolean => OVER.includes(state)
export const canPause = (state: JobState): boolean => state === 'running' || state === 'starting' || state === 'queued'
export const canResume = (state: JobState): boolean => state === 'paused'
export const canCancel = (state: JobState): boolean => !isOver(state) && state !== 'cancelling'
/** A trainer is, or will soon be, at work. */
export const isActive = (state: JobState): boolean => !isOver(state) && state !== 'paused'
