/** The list of conversations: found, renamed, deleted, written to a file and read from one. */

import { h, iconButton, isComposing, toast } from './dom.js'
import { exportText, parseExport } from './storage.js'

export class Sidebar {
  /**
   * @param {HTMLElement} host
   * @param {import('./store.js').Store} store
   * @param {import('./chat.js').Chat} chat
   * @param {{opened: () => void}} options `opened`: a conversation was chosen.
   */
  constructor(host, store, chat, { opened }) {
    this.store = store
    this.chat = chat
    this.opened = opened
    this.search = h('input', {
      type: 'search',
      placeholder: 'Search',
      'aria-label': 'Search conversations',
      oninput: () => this.show(),
    })
    this.list = h('ul', { class: 'conversations' })
    this.newButton = iconButton('plus', 'New conversation', () => this.create())
    this.nothing = h('p', { class: 'hint', role: 'status' })
    const file = h('input', {
      type: 'file',
      accept: '.json,application/json',
      'aria-label': 'Conversations to import',
      hidden: true,
      onchange: () => this.importFile(file),
    })
    host.append(
      h('div', { class: 'row' }, this.search, this.newButton),
      h('nav', { 'aria-label': 'Conversations' }, this.list, this.nothing),
      h(
        'div',
        { class: 'row side-foot' },
        iconButton('save', 'Export all conversations', () => this.exportAll()),
        iconButton('open', 'Import conversations', () => file.click()),
        iconButton('trash', 'Delete all conversations', () => this.removeAll()),
        file,
      ),
    )
    store.addEventListener('list', () => this.show())
    store.addEventListener('open', () => this.show())
    chat.addEventListener('end', () => this.show())
    this.show()
  }

  create() {
    this.store.show(null)
    this.opened()
  }

  show() {
    if (this.list.querySelector('input')) return // a title is being typed
    const words = this.search.value.trim().toLowerCase()
    const found = this.store.conversations.filter((conversation) => matches(conversation, words))
    const before = [...this.list.children]
    const at = before.findIndex((item) => item.contains(document.activeElement))
    this.list.replaceChildren(...found.map((conversation) => this.entry(conversation)))
    if (at >= 0) this.focus(before[at].dataset.id, at)
    const none = this.store.conversations.length ? 'Nothing found.' : 'No conversations yet.'
    this.nothing.textContent = found.length ? '' : none
  }

  /** Go to an entry; where that is gone, to the one in its place, or to what is left. */
  focus(id, at = 0) {
    const items = [...this.list.children]
    const item = items.find((other) => other.dataset.id === id) ?? items[at] ?? items.at(-1)
    const button = item?.querySelector('button') ?? this.newButton
    button.focus()
  }

  entry(conversation) {
    const { id, title } = conversation
    const open = () => {
      this.store.show(id)
      this.opened()
    }
    const isOpen = conversation === this.store.open
    const name = h(
      'button',
      {
        type: 'button',
        class: 'quiet title',
        onclick: open,
        'aria-current': isOpen && 'true',
        title,
      },
      title,
    )
    if (this.chat.run(conversation)) name.append(h('span', { class: 'pulse', title: 'replying' }))
    const item = h('li', { 'data-id': id, class: isOpen ? 'open' : null }, name)
    const more = { class: 'icon small' }
    item.append(
      iconButton('edit', `Rename “${title}”`, () => this.rename(item, conversation), more),
      iconButton('trash', `Delete “${title}”`, () => this.remove(conversation), more),
    )
    return item
  }

  rename(item, conversation) {
    const input = h('input', { 'aria-label': 'Title', value: conversation.title })
    let done = false
    const finish = (keep) => {
      if (done) return
      done = true
      const held = input === document.activeElement
      input.remove()
      if (keep) this.store.rename(conversation, input.value)
      else this.show()
      if (held) this.focus(conversation.id)
    }
    input.addEventListener('keydown', (event) => {
      if (isComposing(event)) return
      if (event.key !== 'Enter' && event.key !== 'Escape') return
      event.stopPropagation()
      event.preventDefault() // the title gets the focus, and would be pressed by the same key
      finish(event.key === 'Enter')
    })
    input.addEventListener('blur', () => finish(true))
    item.replaceChildren(input)
    input.select()
    input.focus()
  }

  remove(conversation) {
    this.chat.run(conversation)?.controller.abort()
    const wasOpen = conversation === this.store.open
    this.store.remove([conversation])
    const run = () => {
      this.store.add([conversation])
      if (wasOpen) this.store.show(conversation.id)
    }
    toast('The conversation was deleted.', { label: 'Undo', run })
  }

  removeAll() {
    const count = this.store.conversations.length
    if (!count) return toast('There are no conversations.')
    const cancel = h('button', { type: 'submit', value: 'no' }, 'Cancel')
    const really = h('button', { type: 'submit', value: 'yes', class: 'danger' }, 'Delete all')
    const dialog = h(
      'dialog',
      { 'aria-labelledby': 'delete-title' },
      h('h2', { id: 'delete-title' }, count === 1 ? 'Delete it?' : `Delete all ${count}?`),
      h('p', {}, 'Conversations are kept in this browser only. This cannot be undone.'),
      h('form', { method: 'dialog', class: 'row end' }, cancel, really),
    )
    dialog.addEventListener('close', () => {
      dialog.remove()
      if (dialog.returnValue !== 'yes') return
      this.chat.stopAll()
      this.store.remove([...this.store.conversations])
    })
    document.body.append(dialog)
    dialog.showModal()
  }

  exportAll() {
    if (!this.store.conversations.length) return toast('There are no conversations.')
    const file = new Blob([exportText(this.store.conversations)], { type: 'application/json' })
    const day = new Date().toISOString().slice(0, 10)
    const href = URL.createObjectURL(file)
    h('a', { href, download: `conversations-${day}.json` }).click()
    setTimeout(() => URL.revokeObjectURL(href), 10_000)
  }

  async importFile(input) {
    const file = input.files[0]
    input.value = ''
    if (!file) return
    try {
      const found = parseExport(await file.text())
      this.store.add(found)
      toast(`${found.length} ${found.length === 1 ? 'conversation' : 'conversations'} imported.`)
    } catch (error) {
      toast(`${file.name}: ${error.message}`)
    }
  }
}

function matches({ title, messages }, words) {
  if (!words || title.toLowerCase().includes(words)) return true
  return messages.some(({ content }) => content.toLowerCase().includes(words))
}
