/** Blocks of code: coloured, with a button that copies them. */

import hljs from '../vendor/highlight.min.js'
import { copyText, glyph, h } from './dom.js'
import { sanitized } from './sanitize.js'

/** Longer code is coloured once it is complete: colouring reads all of it again. */
const COLOURED_WHILE_OPEN = 4000
/** Longer code is never coloured: it would hold up the page. */
const COLOURED_AT_ALL = 60_000

/**
 * @param {string} text
 * @param {string} language As the model named it; it may name none, or one that is not known.
 * @param {{open?: boolean}} [options] `open`: more of it is still to come.
 * @returns {HTMLElement}
 */
export function codeBlock(text, language, { open = false } = {}) {
  const code = h('code')
  const copy = h('button', { type: 'button', class: 'quiet copy' }, glyph('copy'), 'Copy')
  copy.addEventListener('click', async () => {
    const done = await copyText(code.textContent)
    copy.replaceChildren(glyph(done ? 'done' : 'copy'), done ? 'Copied' : 'Not copied')
    setTimeout(() => copy.replaceChildren(glyph('copy'), 'Copy'), 2000)
  })
  const name = language.slice(0, 30) || 'code'
  const block = h(
    'div',
    { class: 'code' },
    h('div', { class: 'code-head' }, h('span', {}, name), copy),
    // Wide code is scrolled sideways, also by keys.
    h('pre', { tabindex: 0, role: 'group', 'aria-label': `Code, ${name}` }, code),
  )
  updateCode(block, text, language, { open })
  return block
}

/**
 * Put more text into a block while it is being written.
 *
 * @param {HTMLElement} block From `codeBlock`.
 * @param {string} text
 * @param {string} language
 * @param {{open?: boolean}} options
 */
export function updateCode(block, text, language, { open = false }) {
  const code = block.querySelector('code')
  const limit = open ? COLOURED_WHILE_OPEN : COLOURED_AT_ALL
  const known = language && hljs.getLanguage(language)
  if (known && text.length <= limit) {
    code.replaceChildren(sanitized(hljs.highlight(text, { language, ignoreIllegals: true }).value))
    return
  }
  const only = code.firstChild
  if (code.childNodes.length === 1 && only instanceof Text && text.startsWith(only.data))
    only.appendData(text.slice(only.data.length))
  else code.textContent = text
}
