/** The panels at the sides: beside the chat where there is room, over it where there is not. */

import { read, write } from './storage.js'

const NARROW = matchMedia('(max-width: 860px)')

/** @typedef {{panel: HTMLElement, button: HTMLElement}} Panel */

export class Panels {
  /** @param {{side: Panel, settings: Panel}} panels */
  constructor(panels) {
    this.panels = panels
    const wide = read('panels', { side: true, settings: false })
    for (const [name, { panel, button }] of Object.entries(panels)) {
      button.addEventListener('click', () => this.toggle(name))
      panel.querySelector('[data-close]')?.addEventListener('click', () => this.set(name, false))
      this.set(name, Boolean(wide[name]) && !NARROW.matches, { keep: false })
    }
    document.getElementById('veil').addEventListener('click', () => this.closeOverlay())
    NARROW.addEventListener('change', () => {
      this.closeOverlay()
      this.cover()
    })
  }

  /** @param {'side' | 'settings'} name */
  toggle(name) {
    this.set(name, this.panels[name].panel.hidden)
  }

  /** @param {'side' | 'settings'} name */
  open(name) {
    this.set(name, true)
  }

  set(name, on, { keep = true } = {}) {
    const { panel, button } = this.panels[name]
    const held = panel.contains(document.activeElement)
    panel.hidden = !on
    button.setAttribute('aria-expanded', String(on))
    if (on && NARROW.matches) {
      for (const other of Object.keys(this.panels)) if (other !== name) this.set(other, false)
    }
    this.cover()
    // On a phone a focused field brings up the keyboard.
    if (on && keep) panel.querySelector(NARROW.matches ? 'button' : 'input, textarea')?.focus()
    else if (held) button.focus()
    if (!keep || NARROW.matches) return
    const shown = Object.entries(this.panels).map(([key, each]) => [key, !each.panel.hidden])
    write('panels', Object.fromEntries(shown))
  }

  /** What a panel lies over is out of reach until it is closed. */
  cover() {
    const open = Object.values(this.panels).some((each) => !each.panel.hidden)
    const covered = open && NARROW.matches
    document.getElementById('veil').hidden = !covered
    document.querySelector('main').inert = covered
  }

  /** @returns {boolean} Whether a panel that covered the chat, or had the focus, was closed. */
  closeOverlay() {
    let closed = false
    for (const [name, { panel }] of Object.entries(this.panels)) {
      if (panel.hidden) continue
      if (!NARROW.matches && !panel.contains(document.activeElement)) continue
      if (!NARROW.matches && name === 'side') continue // it stays while there is room
      this.set(name, false)
      closed = true
    }
    return closed
  }
}
