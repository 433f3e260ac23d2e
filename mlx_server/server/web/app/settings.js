/** The panel of settings. */

import { h } from './dom.js'
import { FIELDS, problem, problems } from './fields.js'
import { getKey, isRemembered, setKey } from './keys.js'

export class SettingsPanel {
  /**
   * @param {HTMLElement} host
   * @param {import('./store.js').Store} store
   * @param {{keyChanged: () => void}} options
   */
  constructor(host, store, { keyChanged }) {
    this.store = store
    /** @type {Map<string, HTMLElement>} */
    this.inputs = new Map()
    let group = host
    for (const field of FIELDS) {
      if (field.group && field.group !== group.dataset.name) {
        group = h('fieldset', { 'data-name': field.group }, h('legend', {}, field.group))
        host.append(group)
      }
      group.append(this.row(field))
    }
    host.append(this.keyRow(keyChanged))
    const reset = h('button', { type: 'button', onclick: () => this.reset() }, 'Reset settings')
    host.append(h('p', { class: 'row' }, reset))
    this.showSchema()
  }

  row(field) {
    const { name, label, hint } = field
    const id = `set-${name}`
    const input = this.input(field, id)
    const wrong = h('p', { class: 'wrong', id: `${id}-wrong`, role: 'status' })
    const told = [hint && `${id}-hint`, `${id}-wrong`].filter(Boolean).join(' ')
    input.setAttribute('aria-describedby', told)
    const read = () => {
      this.store.set(name, input.value)
      if (input.getAttribute('aria-invalid')) this.check(field)
      if (name === 'response_format') this.showSchema()
    }
    input.addEventListener('input', read)
    input.addEventListener('change', () => this.check(field))
    this.inputs.set(name, input)
    return h(
      'div',
      { class: `field ${field.kind}`, 'data-name': name },
      h('label', { for: id }, label),
      input,
      hint && h('p', { class: 'hint', id: `${id}-hint` }, hint),
      wrong,
    )
  }

  input({ name, kind, choices, example }, id) {
    const value = this.store.settings[name] ?? ''
    if (kind === 'choice') {
      const options = choices.map(([key, words]) => h('option', { value: key }, words))
      const select = h('select', { id }, ...options)
      select.value = value
      return select
    }
    if (kind === 'number' || kind === 'integer')
      return h('input', {
        id,
        value,
        inputmode: 'decimal',
        autocomplete: 'off',
        placeholder: 'default',
      })
    const rows = kind === 'text' ? 4 : kind === 'json' ? 5 : 2
    const more =
      kind === 'text' ? {} : { spellcheck: 'false', class: 'mono', autocapitalize: 'off' }
    return h('textarea', { id, value, rows, placeholder: example, ...more })
  }

  keyRow(changed) {
    const input = h('input', {
      id: 'set-key',
      type: 'password',
      autocomplete: 'off',
      value: getKey() ?? '',
      'aria-describedby': 'set-key-hint',
    })
    const remember = h('input', { id: 'set-key-kept', type: 'checkbox', checked: isRemembered() })
    const keep = () => {
      setKey(input.value.trim(), remember.checked)
      changed()
    }
    input.addEventListener('change', keep)
    remember.addEventListener('change', keep)
    this.showKey = () => {
      input.value = getKey() ?? ''
      remember.checked = isRemembered()
    }
    const fields = h(
      'fieldset',
      {},
      h('legend', {}, 'Access'),
      h(
        'div',
        { class: 'field' },
        h('label', { for: 'set-key' }, 'API key'),
        input,
        h('p', { class: 'hint', id: 'set-key-hint' }, 'Only where the server asks for one.'),
      ),
      h('p', { class: 'check' }, remember, h('label', { for: 'set-key-kept' }, 'Remember it here')),
    )
    const form = h('form', { 'aria-label': 'Access' }, fields)
    form.addEventListener('submit', (event) => event.preventDefault())
    return form
  }

  /** Show what is wrong with a field, or that nothing is. */
  check(field) {
    const words = problem(this.store.settings, field)
    const input = this.inputs.get(field.name)
    if (words) input.setAttribute('aria-invalid', 'true')
    else input.removeAttribute('aria-invalid')
    document.getElementById(`set-${field.name}-wrong`).textContent = words ?? ''
  }

  /** Show all that is wrong and go to the first of it. */
  showProblems() {
    FIELDS.forEach((field) => this.check(field))
    const [first] = Object.keys(problems(this.store.settings))
    if (first) this.inputs.get(first).focus()
  }

  showSchema() {
    const row = this.inputs.get('schema').closest('.field')
    row.hidden = this.store.settings.response_format !== 'json_schema'
  }

  reset() {
    for (const field of FIELDS) {
      this.inputs.get(field.name).value = ''
      this.store.set(field.name, '')
      this.check(field)
    }
    this.showSchema()
  }
}
