/** Keys that do something, and the list of them. */

import { h, isComposing } from './dom.js'
import { read, write } from './storage.js'

const ALWAYS = [
  ['Enter', 'Send'],
  ['Shift Enter', 'New line'],
  ['Escape', 'Stop the reply; close a panel'],
  ['↑', 'In an empty box: edit your last message'],
  ['← →', 'Among tokens: the one before, the next'],
]

/**
 * @param {Record<string, [string, () => void]>} keys What a key does, in words and in fact. They
 *   hold where nothing is being typed.
 * @param {() => boolean} escape Whether there was something to stop or to close.
 * @returns {() => void} Shows the list.
 */
export function bindShortcuts(keys, escape) {
  let single = read('shortcuts', true)

  const help = () => {
    const row = ([key, words]) =>
      h(
        'tr',
        {},
        h('th', { scope: 'row' }, ...key.split(' ').map((k) => h('kbd', {}, k))),
        h('td', {}, words),
      )
    const on = h('input', { id: 'single-keys', type: 'checkbox', checked: single })
    on.addEventListener('change', () => {
      single = on.checked
      write('shortcuts', single)
    })
    const singles = Object.entries(keys).map(([key, [words]]) => [key, words])
    const dialog = h(
      'dialog',
      { 'aria-labelledby': 'help-title' },
      h('h2', { id: 'help-title' }, 'Keyboard shortcuts'),
      h('table', { class: 'keys' }, h('tbody', {}, ...[...ALWAYS, ...singles].map(row))),
      h(
        'p',
        { class: 'check' },
        on,
        h('label', { for: 'single-keys' }, 'Shortcuts of a single key'),
      ),
      h('form', { method: 'dialog', class: 'row end' }, h('button', { type: 'submit' }, 'Close')),
    )
    dialog.addEventListener('close', () => dialog.remove())
    document.body.append(dialog)
    dialog.showModal()
  }
  keys['?'] = ['This list', help]

  addEventListener('keydown', (event) => {
    if (event.defaultPrevented || isComposing(event)) return
    if (document.querySelector('dialog[open]')) return
    if (event.key === 'Escape') {
      if (escape()) event.preventDefault()
      return
    }
    const typing = event.target.closest?.('input, textarea, select, [role="listbox"]')
    if (!single || typing || event.ctrlKey || event.metaKey || event.altKey) return
    const action = keys[event.key]
    if (!action) return
    event.preventDefault()
    action[1]()
  })
  return help
}
