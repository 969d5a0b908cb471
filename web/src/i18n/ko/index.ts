import { data } from './data'
import { packages } from './packages'
import { settings } from './settings'
import { shell } from './shell'
import { work } from './work'

export default { ...shell, ...work, ...packages, ...settings, ...data }
