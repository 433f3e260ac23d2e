/** How a message looks: the user's as text, a reply as Markdown, with what can be done with it. */

import { callsView } from './calls.js'
import { copyText, glyph, h, iconButton, isComposing, relabel } from './dom.js'
import { legend, tokenView } from './logprobs.js'
import { MarkdownView } from './markdown.js'
import { seconds, statsLine } from './stats.js'

/**
 * @typedef {object} Shown What a view knows beside its message.
 * @property {boolean} running Whether this reply is being written.
 * @property {boolean} busy Whether any reply of the conversation is.
 * @property {boolean} last
 * @property {string} note What is said while nothing has come yet.
 * @property {boolean} probabilities
 * @property {import('./types.js').Message[]} results
 */

class View {
  constructor(message, chat) {
    this.message = message
    this.chat = chat
    this.actions = h('div', { class: 'actions' })
  }

  copyButton() {
    const button = iconButton('copy', 'Copy', async () => {
      const done = await copyText(this.message.content)
      relabel(button, done ? 'done' : 'copy', done ? 'Copied' : 'Not copied')
      setTimeout(() => relabel(button, 'copy', 'Copy'), 2000)
    })
    return button
  }

  deleteButton() {
    return iconButton('trash', 'Delete', () => this.chat.remove(this.message))
  }

  /** Put a box in the place of the text, to change it. */
  edit(place, label, confirm, done) {
    if (this.chat.run() || this.editor) return
    const area = h('textarea', {
      class: 'editor',
      'aria-label': label,
      value: this.message.content,
    })
    const close = () => {
      this.editor.replaceWith(place)
      this.editor = null
      this.update(this.shown)
      this.element.querySelector('.actions button')?.focus()
    }
    const accept = () => {
      if (done(area.value) !== false) close()
    }
    area.addEventListener('keydown', (event) => {
      if (isComposing(event)) return
      if (event.key === 'Escape') {
        event.stopPropagation()
        close()
      } else if (event.key === 'Enter' && !event.shiftKey) {
        event.preventDefault()
        accept()
      }
    })
    this.editor = h(
      'div',
      { class: 'editing' },
      area,
      h(
        'div',
        { class: 'row end' },
        h('button', { type: 'button', onclick: close }, 'Cancel'),
        h('button', { type: 'button', class: 'primary', onclick: accept }, confirm),
      ),
    )
    place.replaceWith(this.editor)
    area.style.height = `${Math.min(area.scrollHeight + 4, 400)}px`
    area.focus()
  }
}

/** A message of the user's. */
export class UserView extends View {
  constructor(message, chat) {
    super(message, chat)
    this.body = h('div', { class: 'bubble' }, message.content)
    this.actions.append(
      this.copyButton(),
      iconButton('edit', 'Edit', () => this.startEdit()),
      this.deleteButton(),
    )
    this.element = h(
      'article',
      { class: 'message user', 'aria-label': 'Your message' },
      this.body,
      this.actions,
    )
  }

  startEdit() {
    const done = (text) => this.chat.editUser(this.message, text)
    this.edit(this.body, 'Edit your message', 'Send', done)
  }

  /** @param {Shown} shown */
  update(shown) {
    this.shown = shown
    this.actions.hidden = shown.busy
  }
}

/** A reply. */
export class ReplyView extends View {
  constructor(message, chat) {
    super(message, chat)
    this.thought = h('div', { class: 'thought-text' })
    this.thoughtTitle = h('span')
    this.reasoning = h(
      'details',
      { class: 'reasoning', hidden: true },
      h('summary', {}, glyph('next'), this.thoughtTitle),
      this.thought,
    )
    this.body = h('div', { class: 'prose' })
    this.markdown = new MarkdownView(this.body)
    this.calls = h('div')
    this.foot = h('div', { class: 'foot' })
    this.element = h(
      'article',
      { class: 'message reply', 'aria-label': 'Reply' },
      this.reasoning,
      this.body,
      this.calls,
      this.foot,
    )
  }

  /** @param {Shown} shown */
  update(shown) {
    this.shown = shown
    const { message } = this
    this.element.classList.toggle('running', shown.running)
    this.element.setAttribute('aria-busy', String(shown.running))
    this.showReasoning(shown)
    if (this.editor) return // it stands where the text does
    if (shown.probabilities && message.tokens?.length && !shown.running) this.showTokens()
    else this.showText(!shown.running)
    this.showCalls(shown)
    if (shown.running) this.showProgress(shown.note)
    else this.showEnd(shown)
  }

  showText(done) {
    if (this.asTokens) {
      this.body.replaceChildren()
      this.markdown = new MarkdownView(this.body)
      this.asTokens = false
    }
    this.markdown.update(this.message.content, { done })
  }

  showTokens() {
    if (this.asTokens === this.message.tokens) return
    this.body.replaceChildren(legend(), tokenView(this.message.tokens))
    this.asTokens = this.message.tokens
  }

  showReasoning({ running, probabilities }) {
    const { reasoning, thought, content, calls, thoughtTokens } = this.message
    this.reasoning.hidden = !reasoning
    if (!reasoning) return
    const thinking = running && !content && !calls
    const time = thought ? ` for ${seconds(thought)}` : ''
    this.thoughtTitle.textContent = thinking ? 'Thinking …' : `Thought${time}`
    if (probabilities && thoughtTokens?.length && !running)
      this.thought.replaceChildren(tokenView(thoughtTokens))
    else if (this.thought.textContent !== reasoning) this.thought.textContent = reasoning
  }

  showCalls({ running, busy, results }) {
    const { calls } = this.message
    const state = JSON.stringify([calls, running, busy && !results.length, results])
    if (state === this.callsState) return
    this.callsState = state
    this.calls.replaceChildren()
    if (!calls?.length) return
    const send = (texts) => this.chat.answer(this.message, texts)
    this.calls.append(callsView(this.message, { results, asks: !busy, send }))
  }

  showProgress(note) {
    const { content, reasoning, calls } = this.message
    const began = content || reasoning || calls
    const words = note || (began ? '' : 'Waiting for the first token …')
    if (this.foot.dataset.words === words) return
    this.foot.dataset.words = words
    this.endState = null
    const line = h('p', { class: 'waiting' }, h('span', { class: 'pulse' }), words)
    this.foot.replaceChildren(...(words ? [line] : []))
  }

  showEnd(shown) {
    const { message, chat } = this
    // Made anew, it would take the focus from its buttons, and an error would be read out again.
    const { error, finish, stats, model, content, reasoning, calls } = message
    const said = [content, reasoning, calls].map(Boolean)
    const state = JSON.stringify([error, finish, stats, model, said, shown.last, shown.busy])
    if (state === this.endState) return
    this.endState = state
    delete this.foot.dataset.words
    const parts = []
    if (message.error) parts.push(this.errorBox(shown))
    else if (message.finish === 'length') {
      const words = 'Cut off: the limit of tokens, or the end of the context, was reached.'
      parts.push(h('p', { class: 'notice' }, words))
    }
    const line = h('div', { class: 'foot-line' })
    if (message.stats && (message.content || message.reasoning || message.calls))
      line.append(statsLine(message))
    line.append(this.actions)
    this.actions.replaceChildren(
      this.copyButton(),
      iconButton('again', 'Regenerate', () => chat.regenerate(message)),
      iconButton('edit', 'Edit', () => this.startEdit()),
      this.deleteButton(),
    )
    const cut = ['length', 'stopped'].includes(message.finish) || message.error
    if (shown.last && cut && message.content && !message.calls) {
      const label = 'Go on with this reply'
      const onclick = () => chat.resume(message)
      const button = h('button', { type: 'button', class: 'quiet', title: label, onclick })
      button.append(glyph('next'), 'Continue')
      this.actions.append(button)
    }
    this.actions.hidden = shown.busy
    this.foot.replaceChildren(...parts, line)
  }

  errorBox({ busy }) {
    const { error } = this.message
    const retry = () => this.chat.regenerate(this.message)
    const said = error.status ? `Error ${error.status}` : 'Error'
    const button = h('button', { type: 'button', onclick: retry, disabled: busy }, glyph('again'))
    button.append('Retry')
    const words = h('p', {}, h('strong', {}, said), ` ${error.message}`)
    return h('div', { class: 'error', role: 'alert' }, words, button)
  }

  startEdit() {
    const done = (text) => this.chat.editReply(this.message, text)
    this.edit(this.body, 'Edit the reply', 'Save', done)
  }
}
