/** Where one writes: grows with the text, sends with Enter, stops a reply. */

import { isComposing, relabel } from './dom.js'

const MAX_HEIGHT = 260 // pixels

export class Composer {
  /**
   * @param {HTMLFormElement} form With a textarea and a button.
   * @param {import('./store.js').Store} store
   * @param {import('./chat.js').Chat} chat
   * @param {{editLast: () => void}} options
   */
  constructor(form, store, chat, { editLast }) {
    this.area = form.querySelector('textarea')
    this.button = form.querySelector('button')
    this.store = store
    this.chat = chat
    /** @type {Map<string, string>} What was begun in each conversation. */
    this.drafts = new Map()
    this.openId = store.open.id
    form.addEventListener('submit', (event) => {
      event.preventDefault()
      if (chat.run()) chat.stop()
      else this.send()
    })
    this.area.addEventListener('input', () => this.fit())
    this.area.addEventListener('keydown', (event) => {
      if (isComposing(event)) return
      if (event.key === 'ArrowUp' && !this.area.value) {
        event.preventDefault()
        editLast()
      }
      if (event.key !== 'Enter' || event.shiftKey) return
      // On a touch keyboard Enter is the only way to a new line.
      if (matchMedia('(pointer: coarse)').matches && !event.ctrlKey && !event.metaKey) return
      event.preventDefault()
      this.send()
    })
    chat.addEventListener('change', () => this.show())
    chat.addEventListener('end', () => this.show())
    store.addEventListener('open', () => this.swap())
    this.show()
  }

  send() {
    if (!this.chat.send(this.area.value)) return
    this.area.value = ''
    this.fit()
  }

  focus() {
    this.area.focus()
  }

  swap() {
    this.drafts.set(this.openId, this.area.value)
    this.openId = this.store.open.id
    this.area.value = this.drafts.get(this.openId) ?? ''
    this.show()
  }

  show() {
    const running = Boolean(this.chat.run())
    relabel(this.button, running ? 'stop' : 'send', running ? 'Stop (Escape)' : 'Send')
    this.button.classList.toggle('stop', running)
    this.fit()
  }

  fit() {
    this.area.style.height = 'auto'
    this.area.style.height = `${Math.min(this.area.scrollHeight, MAX_HEIGHT)}px`
    this.button.disabled = !this.chat.run() && !this.area.value.trim()
  }
}
