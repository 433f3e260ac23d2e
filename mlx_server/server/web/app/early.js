// Run before the page is painted, as a plain script in <head>: the chosen theme holds at once.
;(() => {
  let theme = null
  try {
    theme = localStorage.getItem('theme')
  } catch {
    // No storage (a private window): the system's theme.
  }
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme
})()
