/** The models and adapters that the server has, to choose from. */

import { models } from './api.js'
import { h } from './dom.js'
import { withKey } from './keys.js'

/** The last part of a path or of a repository's name. */
export function shortName(id) {
  return id.split('/').filter(Boolean).at(-1) ?? id
}

export class ModelPicker {
  /**
   * @param {HTMLSelectElement} select
   * @param {import('./store.js').Store} store
   */
  constructor(select, store) {
    this.select = select
    this.store = store
    select.addEventListener('change', () => store.setModel(select.value))
    store.addEventListener('model', () => this.showTitle())
    this.showTitle()
  }

  /**
   * Ask the server.
   *
   * @throws {import('./api.js').ApiError}
   */
  async load() {
    const cards = await withKey((key) => models(key))
    const bases = cards.filter(({ parent }) => !parent)
    const options = bases.flatMap((base) => [
      option(base),
      ...cards.filter(({ parent }) => parent === base.id).map(option),
    ])
    this.select.replaceChildren(...options)
    this.select.disabled = !cards.length
    const known = cards.some(({ id }) => id === this.store.model)
    // The first is the command line's.
    if (!known) this.store.setModel(cards[0]?.id ?? null)
    if (this.store.model) this.select.value = this.store.model
    this.showTitle()
  }

  showTitle() {
    const { model } = this.store
    document.title = model ? `${shortName(model)} · mlx_server` : 'mlx_server'
    this.select.title = model ?? ''
  }
}

function option({ id, parent, max_model_len: context }) {
  const size = context ? ` · ${context >= 1024 ? `${Math.round(context / 1024)}k` : context}` : ''
  const label = parent ? `↳ ${shortName(id)} (adapter)` : `${shortName(id)}${size}`
  return h('option', { value: id, title: id }, label)
}
