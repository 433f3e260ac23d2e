/** Making and finding elements, and saying things to who listens rather than looks. */

/**
 * An element. A name that begins with `on` is a listener's, the others are attributes: true stands
 * for an empty one, null and false for none. Strings among the children become text, never markup.
 *
 * @param {string} tag
 * @param {Record<string, any>} [attributes]
 * @param {...(Node | string | null | undefined | false)} children
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value)
    else if (name === 'value') element.value = value
    else element.setAttribute(name, value === true ? '' : value)
  }
  element.append(...children.filter((child) => child || child === ''))
  return element
}

const GLYPHS = {
  menu: 'M4 7h16M4 12h16M4 17h10',
  plus: 'M12 5v14M5 12h14',
  close: 'M6 6l12 12M18 6L6 18',
  send: 'M12 19V5M6 11l6-6 6 6',
  stop: 'M7 7h10v10H7z',
  down: 'M12 5v14M6 13l6 6 6-6',
  copy: 'M9 9h10v11H9zM15 5H5v11',
  done: 'M5 13l5 5 9-11',
  edit: 'M5 19l1-4L16 5l3 3L9 18zM14 7l3 3',
  trash: 'M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10 11v5M14 11v5',
  again: 'M19 12a7 7 0 1 1-2-5M19 4v4h-4',
  next: 'M5 6l6 6-6 6M13 6l6 6-6 6',
  sliders:
    'M4 7h8M18 7h2M4 17h2M12 17h8M15 4.5a2.5 2.5 0 1 0 0 5a2.5 2.5 0 0 0 0-5zM9 14.5a2.5 2.5 0 1 0 0 5a2.5 2.5 0 0 0 0-5z',
  search: 'M11 5a6 6 0 1 0 0 12a6 6 0 0 0 0-12zM20 20l-4.5-4.5',
  chart: 'M5 19V11M12 19V5M19 19v-5',
  sun: 'M12 8a4 4 0 1 0 0 8a4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6L19 19M19 5l-1.4 1.4M6.4 17.6L5 19',
  moon: 'M20 14A8 8 0 1 1 10 4a6.5 6.5 0 0 0 10 10z',
  auto: 'M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16',
  brand: 'M4 18V7l5 6 3-4 3 4 5-6v11',
  save: 'M12 4v11M7 11l5 5 5-5M5 20h14',
  open: 'M12 16V5M7 9l5-5 5 5M5 20h14',
}

/**
 * A drawing beside a label, hidden from who listens.
 *
 * @param {keyof typeof GLYPHS} name
 * @returns {SVGElement}
 */
export function glyph(name) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg')
  svg.setAttribute('viewBox', '0 0 24 24')
  svg.setAttribute('class', 'glyph')
  svg.setAttribute('aria-hidden', 'true')
  const path = document.createElementNS(svg.namespaceURI, 'path')
  path.setAttribute('d', GLYPHS[name])
  svg.append(path)
  return svg
}

/**
 * A button that shows a drawing only; its label is its name and its hint.
 *
 * @param {keyof typeof GLYPHS} drawing
 * @param {string} label
 * @param {(event: MouseEvent) => void} onclick
 * @param {Record<string, any>} [attributes]
 * @returns {HTMLButtonElement}
 */
export function iconButton(drawing, label, onclick, attributes = {}) {
  const all = { type: 'button', class: 'icon', 'aria-label': label, title: label, onclick }
  return h('button', { ...all, ...attributes }, glyph(drawing))
}

/**
 * Put a button's drawing and name.
 *
 * @param {HTMLButtonElement} button
 * @param {keyof typeof GLYPHS} drawing
 * @param {string} label
 */
export function relabel(button, drawing, label) {
  button.replaceChildren(glyph(drawing))
  button.setAttribute('aria-label', label)
  button.title = label
}

/**
 * Whether a key belongs to an input method, which is still composing a word. Safari ends the
 * composition before it tells of the Enter that did so; that one has the code 229.
 *
 * @param {KeyboardEvent} event
 * @returns {boolean}
 */
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229
}

/** @returns {string} An identifier that no other message or conversation has. */
export function newId() {
  // crypto.randomUUID is missing on plain http:// outside this machine.
  const words = crypto.getRandomValues(new Uint32Array(3))
  return [...words].map((word) => word.toString(36)).join('')
}

/**
 * Read by screen readers, once; shown nowhere.
 *
 * @param {string} text
 */
export function announce(text) {
  const region = document.getElementById('announcer')
  if (region) region.textContent = text
}

/**
 * A line at the foot of the page for some seconds.
 *
 * @param {string} text
 * @param {{label: string, run: () => void} | null} [action] A button in it, e.g. to undo.
 */
export function toast(text, action = null) {
  const host = document.getElementById('toasts')
  const line = h('div', { class: 'toast' }, h('span', {}, text))
  const remove = () => line.remove()
  if (action) {
    const onclick = () => {
      remove()
      action.run()
    }
    line.append(h('button', { type: 'button', class: 'quiet', onclick }, action.label))
  }
  line.append(iconButton('close', 'Dismiss', remove))
  host.replaceChildren(line)
  setTimeout(remove, action ? 12_000 : 6_000)
}

/**
 * Copy, also where the page is not a secure context (plain http:// in a local network).
 *
 * @param {string} text
 * @returns {Promise<boolean>} Whether it is in the clipboard.
 */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text)
    return true
  } catch {
    const area = h('textarea', { class: 'visually-hidden', 'aria-hidden': 'true', value: text })
    document.body.append(area)
    area.select()
    const done = document.execCommand('copy')
    area.remove()
    return done
  }
}
