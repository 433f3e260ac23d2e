/** What the page knows: the conversations, the one that is open, the settings and the model. */

import { newId } from './dom.js'
import * as storage from './storage.js'

const TITLE_LENGTH = 60
const SAVE_LATER = 400 // milliseconds: settings are typed letter by letter

/**
 * Tells of its changes by events: `list` (conversations came, went or were renamed), `open`
 * (another is open, or its messages were replaced), `settings`, `model`, and `full` (a
 * conversation could not be kept).
 */
export class Store extends EventTarget {
  constructor() {
    super()
    /** @type {import('./types.js').Conversation[]} The latest first; empty ones are not in it. */
    this.conversations = storage.readConversations()
    /** @type {import('./types.js').Settings} */
    this.settings = storage.read('settings', {})
    /** @type {string | null} */
    this.model = storage.read('model', null)
    /** @type {boolean} Whether replies are asked for, and shown, with their probabilities. */
    this.probabilities = storage.read('probabilities', false)
    const last = storage.read('open', null)
    /** @type {import('./types.js').Conversation} */
    this.open = this.find(last) ?? blank()
    this.timer = 0
  }

  /** @param {string | null} id */
  find(id) {
    return this.conversations.find((conversation) => conversation.id === id)
  }

  /** @param {string | null} id null: a new one. */
  show(id) {
    this.open = this.find(id) ?? blank()
    storage.write('open', this.open.id)
    this.tell('open')
  }

  /**
   * Keep a conversation as it is now; it becomes the latest.
   *
   * @param {import('./types.js').Conversation} conversation
   * @param {{touch?: boolean}} [options] `touch`: it becomes the latest.
   */
  save(conversation, { touch = true } = {}) {
    if (!conversation.messages.length && !this.conversations.includes(conversation)) return
    if (!conversation.named) conversation.title = titleOf(conversation)
    if (touch) conversation.updated = Date.now()
    if (!this.conversations.includes(conversation)) this.conversations.push(conversation)
    this.conversations.sort((a, b) => b.updated - a.updated)
    if (conversation === this.open) storage.write('open', conversation.id)
    if (!storage.writeConversation(conversation)) this.tell('full')
    this.tell('list')
  }

  /**
   * @param {import('./types.js').Conversation} conversation
   * @param {string} title Empty: that of its first message again.
   */
  rename(conversation, title) {
    conversation.named = Boolean(title.trim())
    conversation.title = title.trim()
    this.save(conversation, { touch: false })
  }

  /** @param {import('./types.js').Conversation[]} gone */
  remove(gone) {
    for (const { id } of gone) storage.removeConversation(id)
    this.conversations = this.conversations.filter((conversation) => !gone.includes(conversation))
    this.tell('list')
    if (gone.includes(this.open)) this.show(null)
  }

  /**
   * Take conversations in, as copies where one of that id is there already.
   *
   * @param {import('./types.js').Conversation[]} conversations
   */
  add(conversations) {
    for (const conversation of conversations) {
      if (this.find(conversation.id)) conversation.id = newId()
      this.conversations.push(conversation)
      this.save(conversation, { touch: false })
    }
  }

  /** Read anew what another tab has changed; what it has not stays, with all that shows it. */
  reload() {
    const known = new Map(this.conversations.map((each) => [each.id, each]))
    this.conversations = storage.readConversations().map((found) => {
      const old = known.get(found.id)
      return old && JSON.stringify(old) === JSON.stringify(found) ? old : found
    })
    this.tell('list')
    const open = this.find(this.open.id)
    if (!open || open === this.open) return
    this.open = open
    this.tell('open')
  }

  /**
   * @param {string} name
   * @param {string} value Empty: the server's default.
   */
  set(name, value) {
    if (value === '') delete this.settings[name]
    else this.settings[name] = value
    clearTimeout(this.timer)
    this.timer = setTimeout(() => this.flush(), SAVE_LATER)
    this.tell('settings')
  }

  /** Keep the settings now, where they were changed here: another tab may have other ones. */
  flush() {
    if (!this.timer) return
    clearTimeout(this.timer)
    this.timer = 0
    storage.write('settings', this.settings)
  }

  /** @param {string | null} model */
  setModel(model) {
    this.model = model
    storage.write('model', model)
    this.tell('model')
  }

  /** @param {boolean} on */
  setProbabilities(on) {
    this.probabilities = on
    storage.write('probabilities', on)
    this.tell('open')
  }

  /** @param {string} type */
  tell(type) {
    this.dispatchEvent(new Event(type))
  }
}

function blank() {
  return { id: newId(), title: '', updated: Date.now(), messages: [] }
}

function titleOf(conversation) {
  const first = conversation.messages.find((message) => message.role === 'user')
  const words = (first?.content ?? '').trim().replace(/\s+/g, ' ')
  if (!words) return 'New conversation'
  return words.length > TITLE_LENGTH ? `${words.slice(0, TITLE_LENGTH - 1).trimEnd()}…` : words
}
