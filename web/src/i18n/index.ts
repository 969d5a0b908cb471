import i18next, { type Resource } from 'i18next'
import { initReactI18next } from 'react-i18next'

export const LANGUAGES = ['en', 'ko'] as const
export type Language = (typeof LANGUAGES)[number]

const KEY = 'hone.language'

// Each language is a chunk of its own: nobody loads both.
const load: Record<Language, () => Promise<{ default: object }>> = {
  en: () => import('./en'),
  ko: () => import('./ko'),
}

/** What was chosen, else the first of the browser's languages that there is. */
function preferred(): Language {
  const wishes = [localStorage.getItem(KEY), ...navigator.languages]
  const known = wishes.map((wish) => LANGUAGES.find((language) => wish?.toLowerCase().startsWith(language)))
  return known.find((language) => language !== undefined) ?? 'en'
}

async function texts(language: Language): Promise<Resource> {
  return { [language]: { translation: (await load[language]()).default as Resource[string] } } as Resource
}

export async function startI18n(): Promise<void> {
  const language = preferred()
  await i18next.use(initReactI18next).init({
    lng: language,
    resources: await texts(language),
    fallbackLng: false,
    // React escapes.
    interpolation: { escapeValue: false },
    returnNull: false,
  })
  document.documentElement.lang = language
}

export async function setLanguage(language: Language): Promise<void> {
  localStorage.setItem(KEY, language)
  if (!i18next.hasResourceBundle(language, 'translation')) {
    i18next.addResourceBundle(language, 'translation', (await load[language]()).default)
  }
  await i18next.changeLanguage(language)
  document.documentElement.lang = language
}
