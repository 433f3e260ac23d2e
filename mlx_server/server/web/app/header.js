/** The header that all pages have: name, links, and the theme. */

import { glyph, h, iconButton, relabel } from './dom.js'

/** The pages' root, also behind a proxy's prefix: this file lies in app/ below it. */
export const ROOT = new URL('..', import.meta.url)

const THEMES = /** @type {const} */ (['auto', 'light', 'dark'])
const DRAWINGS = { auto: 'auto', light: 'sun', dark: 'moon' }
const LABELS = { auto: 'as the system', light: 'light', dark: 'dark' }

/** @returns {'auto' | 'light' | 'dark'} */
export function theme() {
  const chosen = document.documentElement.dataset.theme
  return chosen === 'light' || chosen === 'dark' ? chosen : 'auto'
}

/**
 * Use a theme, and keep it for the next visit.
 *
 * @param {'auto' | 'light' | 'dark'} name
 */
export function setTheme(name) {
  if (name === 'auto') delete document.documentElement.dataset.theme
  else document.documentElement.dataset.theme = name
  try {
    if (name === 'auto') localStorage.removeItem('theme')
    else localStorage.setItem('theme', name)
  } catch {
    // Without storage it holds until the page is left.
  }
}

/**
 * @param {HTMLElement} host An empty <header>.
 * @param {{page: 'chat' | 'engine', more?: Node[]}} options `more`: the page's own buttons, before
 *   the theme's.
 */
export function mountHeader(host, { page, more = [] }) {
  const link = (name, path, label) => {
    const current = name === page ? 'page' : null
    return h('a', { href: new URL(path, ROOT).href, 'aria-current': current }, label)
  }
  const show = () => relabel(button, DRAWINGS[theme()], `Theme: ${LABELS[theme()]}`)
  const button = iconButton('auto', 'Theme', () => {
    setTheme(THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length])
    show()
  })
  button.id = 'theme'
  show()
  // Another tab's choice holds here too.
  addEventListener('storage', (event) => {
    if (event.key !== 'theme') return
    setTheme(event.newValue === 'light' || event.newValue === 'dark' ? event.newValue : 'auto')
    show()
  })
  host.classList.add('site-header')
  const links = [
    link('chat', './', 'Chat'),
    link('engine', 'engine/', 'Engine'),
    link('docs', 'docs', 'API docs'),
  ]
  host.replaceChildren(
    h(
      'a',
      { class: 'brand', href: ROOT.href, 'aria-label': 'mlx_server' },
      glyph('brand'),
      h('span', {}, 'mlx_server'),
    ),
    h('nav', { 'aria-label': 'Pages' }, ...links),
    ...more,
    button,
  )
}
