// Runs before the first paint: the chosen colours (or the system's) and language.
;(function () {
  var theme = 'system'
  var language = null
  try {
    theme = localStorage.getItem('hone.theme') || 'system'
    language = localStorage.getItem('hone.language')
  } catch (error) {
    // Storage is off: the system decides.
  }
  var dark = theme === 'dark' || (theme === 'system' && matchMedia('(prefers-color-scheme: dark)').matches)
  document.documentElement.classList.toggle('dark', dark)
  if (language) document.documentElement.lang = language
})()
