/** The open conversation's messages, kept in step with what the chat does. */

import { announce, h } from './dom.js'
import { Follower } from './follow.js'
import { ReplyView, UserView } from './message.js'

const DEMO = ['What is mlx_server?', 'How do I load another model?', 'Write a curl request.']
const ANY = [
  'Explain how a rainbow forms.',
  'Write a Python function that tells whether a word is a palindrome.',
  'Plan a quiet weekend in the mountains.',
]
const ANNOUNCED = 1000 // characters of a reply that are read out

export class Thread {
  /**
   * @param {HTMLElement} scroller
   * @param {HTMLElement} host The messages' place in it.
   * @param {import('./store.js').Store} store
   * @param {import('./chat.js').Chat} chat
   * @param {{onlost: () => void}} options `onlost`: what had the focus is gone.
   */
  constructor(scroller, host, store, chat, { onlost }) {
    this.host = host
    this.onlost = onlost
    this.store = store
    this.chat = chat
    /** @type {Map<object, UserView | ReplyView>} */
    this.views = new Map()
    this.pending = new Set()
    this.frame = 0
    this.follower = new Follower(scroller)
    chat.addEventListener('change', () => this.showAll({ toEnd: Boolean(chat.run()) }))
    chat.addEventListener('delta', ({ detail }) => this.later(detail))
    chat.addEventListener('end', ({ detail }) => this.ended(detail))
    store.addEventListener('open', () => this.showAll({ toEnd: true }))
    this.showAll({ toEnd: true })
  }

  /** Show what there is; views of messages that stayed are kept. */
  showAll({ toEnd }) {
    const { messages } = this.store.open
    const held = this.host.contains(document.activeElement)
    for (const [message, view] of this.views) {
      if (messages.includes(message)) continue
      view.element.remove()
      this.views.delete(message)
    }
    const shown = messages.filter(({ role }) => role !== 'tool')
    shown.forEach((message, i) => {
      if (!this.views.has(message)) {
        const View = message.role === 'user' ? UserView : ReplyView
        this.views.set(message, new View(message, this.chat))
      }
      const { element } = this.views.get(message)
      if (this.host.children[i] !== element) this.host.insertBefore(element, this.host.children[i])
      this.update(message)
    })
    if (!shown.length) this.host.replaceChildren(this.welcome())
    else this.host.querySelector('.welcome')?.remove()
    if (toEnd) this.follower.toEnd()
    if (held && !this.host.contains(document.activeElement)) this.onlost()
  }

  update(message) {
    const { messages } = this.store.open
    const run = this.chat.run()
    const running = run?.message === message
    this.views.get(message)?.update({
      running,
      busy: Boolean(run),
      last: messages.at(-1) === message,
      note: running ? run.note : '',
      probabilities: this.store.probabilities,
      results: this.chat.results(message),
    })
  }

  /** Draw a message in the next frame; a drawing that took long is followed by a longer pause, so
   * that most of the time stays for everything else. */
  later(message) {
    this.pending.add(message)
    this.frame ||= requestAnimationFrame(() => {
      const begun = performance.now()
      for (const waiting of this.pending) this.update(waiting)
      this.pending.clear()
      this.follower.follow()
      const pause = Math.min(4 * (performance.now() - begun), 1000)
      const next = () => {
        this.frame = 0
        if (this.pending.size) this.later(this.pending.values().next().value)
      }
      if (pause > 16) setTimeout(next, pause)
      else next()
    })
  }

  ended(message) {
    this.pending.delete(message)
    if (!this.views.has(message)) return announce('A reply in another conversation is finished.')
    this.showAll({ toEnd: false })
    this.follower.follow()
    if (message.error) return // the box is an alert
    const { body } = this.views.get(message)
    const text = body.querySelector('.tokens') ? message.content : body.textContent
    const calls = message.calls?.length ? `It calls ${message.calls.map((c) => c.name)}. ` : ''
    const how = message.finish === 'stopped' ? 'Reply stopped. ' : 'Reply finished. '
    announce(how + calls + text.slice(0, ANNOUNCED))
  }

  /** The last message of the user's is opened for editing. */
  editLast() {
    const last = this.store.open.messages.findLast(({ role }) => role === 'user')
    if (last) this.views.get(last).startEdit()
  }

  welcome() {
    const { model } = this.store
    const ideas = /\bdemo\b/i.test(model ?? '') ? DEMO : ANY
    const idea = (text) => {
      const onclick = () => this.chat.send(text)
      return h('li', {}, h('button', { type: 'button', onclick }, text))
    }
    return h(
      'div',
      { class: 'welcome' },
      h('h2', {}, 'What shall we talk about?'),
      h('p', {}, 'Conversations stay in this browser. Nothing is asked of any other host.'),
      h('ul', { class: 'ideas' }, ...ideas.map(idea)),
    )
  }
}
