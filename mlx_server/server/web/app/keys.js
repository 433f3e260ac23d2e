/** The API key: where it is kept, and the dialog that asks for it. */

import { h } from './dom.js'
import { ApiError } from './api.js'

const NAME = 'mlx_server.key'

/** @returns {string | null} */
export function getKey() {
  try {
    return sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME)
  } catch {
    return null
  }
}

/** @returns {boolean} Whether the key stays when the browser is closed. */
export function isRemembered() {
  try {
    return localStorage.getItem(NAME) !== null
  } catch {
    return false
  }
}

/**
 * @param {string} key Empty: forget it.
 * @param {boolean} remember In the browser, and not for this tab's session only.
 */
export function setKey(key, remember) {
  try {
    sessionStorage.removeItem(NAME)
    localStorage.removeItem(NAME)
    if (key) (remember ? localStorage : sessionStorage).setItem(NAME, key)
  } catch {
    // Without storage it has to be typed again.
  }
}

/** @type {Promise<boolean> | null} One dialog, whoever asks meanwhile. */
let asking = null

/**
 * Ask for the key.
 *
 * @param {string} reason The server's words.
 * @returns {Promise<boolean>} Whether one was given.
 */
export function askKey(reason) {
  asking ??= new Promise((resolve) => {
    const input = h('input', {
      id: 'key-asked',
      type: 'password',
      autocomplete: 'off',
      required: true,
      'aria-describedby': 'key-reason',
    })
    const remember = h('input', { id: 'key-kept', type: 'checkbox', checked: isRemembered() })
    const form = h(
      'form',
      { method: 'dialog' },
      h('h2', { id: 'key-title' }, 'API key'),
      h('p', { id: 'key-reason' }, `The server asks for a key. It said: ${reason}`),
      h('label', { for: 'key-asked' }, 'Key'),
      input,
      h('p', { class: 'check' }, remember, h('label', { for: 'key-kept' }, 'Remember it here')),
      h('p', { class: 'hint' }, 'Otherwise it is forgotten when this tab is closed.'),
      h(
        'div',
        { class: 'row end' },
        h('button', { type: 'button', onclick: () => dialog.close() }, 'Cancel'),
        h('button', { type: 'submit', class: 'primary' }, 'Use this key'),
      ),
    )
    const dialog = h('dialog', { 'aria-labelledby': 'key-title' }, form)
    form.addEventListener('submit', (event) => {
      event.preventDefault()
      const key = input.value.trim()
      if (!key) return input.focus()
      setKey(key, remember.checked)
      dialog.close('given')
    })
    dialog.addEventListener('close', () => {
      dialog.remove()
      asking = null
      resolve(dialog.returnValue === 'given')
    })
    document.body.append(dialog)
    dialog.showModal()
  })
  return asking
}

/**
 * Run a request with the key; where the server refuses it, ask for another and run it again.
 *
 * @template T
 * @param {(key: string | null) => Promise<T>} run
 * @returns {Promise<T>}
 * @throws {ApiError} What `run` throws; 401 only where no key was given.
 */
export async function withKey(run) {
  for (;;) {
    const used = getKey()
    try {
      return await run(used)
    } catch (error) {
      if (!(error instanceof ApiError) || error.status !== 401) throw error
      // Meanwhile another request may have asked already.
      if (getKey() === used && !(await askKey(error.message))) throw error
    }
  }
}
