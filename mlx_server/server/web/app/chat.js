/** What can be done with a conversation: replies are asked for, stopped, replaced. No elements. */

import { ApiError, isReady, streamChat } from './api.js'
import { newId } from './dom.js'
import { problems } from './fields.js'
import { withKey } from './keys.js'
import { replyInto } from './reply.js'
import { chatBody } from './request.js'

const POLL = 1000 // milliseconds between two looks whether the model is loaded
const BUSY_TRIES = 5 // a server that is loaded and has no room is asked so often

/**
 * Events: `change` (messages came or went), `delta` (`detail`: the message that grew), `end`
 * (`detail`: the message that is done), `invalid` (the settings cannot be sent), `undo`
 * (`detail`: {what, run}: something was removed, and how it comes back).
 */
export class Chat extends EventTarget {
  /** @param {import('./store.js').Store} store */
  constructor(store) {
    super()
    this.store = store
    /** @type {Map<string, {message: object, controller: AbortController, note: string}>} */
    this.running = new Map()
  }

  /** @param {import('./types.js').Conversation} [conversation] */
  run(conversation = this.store.open) {
    return this.running.get(conversation.id)
  }

  /**
   * @param {string} text
   * @returns {boolean} Whether it is sent.
   */
  send(text) {
    if (!text.trim() || this.run() || !this.valid()) return false
    const { messages } = this.store.open
    messages.push({ id: newId(), role: 'user', content: text })
    this.reply()
    return true
  }

  /**
   * Replace a message of the user's, and what came after it.
   *
   * @param {import('./types.js').Message} message
   * @param {string} text
   * @returns {boolean} Whether it is done.
   */
  editUser(message, text) {
    if (!text.trim() || this.run() || !this.valid()) return false
    this.cut(this.place(message), 'Later turns were replaced.', 1)
    this.store.open.messages.push({ ...message, content: text })
    this.reply()
    return true
  }

  /**
   * Change the words of a reply; what came after it stays.
   *
   * @param {import('./types.js').Message} message
   * @param {string} text
   */
  editReply(message, text) {
    message.content = text
    delete message.tokens
    this.changed()
  }

  /** @param {import('./types.js').Message} message A reply; it and what came after it go. */
  regenerate(message) {
    if (this.run() || !this.valid()) return
    this.cut(this.place(message), 'Later turns were replaced.', 1)
    this.reply()
  }

  /** @param {import('./types.js').Message} message The last reply, which was cut off. */
  resume(message) {
    if (this.run() || !this.valid()) return
    // Probabilities of the rest alone would be shown as those of all of it.
    const whole = this.store.probabilities && message.tokens
    if (!whole) delete message.tokens
    this.generate(message, { continues: true, probabilities: Boolean(whole) })
  }

  /**
   * Send what the tools that a reply calls have given.
   *
   * @param {import('./types.js').Message} message
   * @param {string[]} results One for each call.
   * @returns {boolean} Whether it is sent.
   */
  answer(message, results) {
    if (this.run() || !this.valid()) return false
    this.cut(this.place(message) + 1, 'Later turns were replaced.', message.calls.length)
    message.calls.forEach((call, i) => {
      const content = results[i]
      this.store.open.messages.push({ id: newId(), role: 'tool', callId: call.id, content })
    })
    this.reply()
    return true
  }

  /** @param {import('./types.js').Message} message Goes, with the results of its calls. */
  remove(message) {
    if (this.run()) return
    const conversation = this.store.open
    const before = [...conversation.messages]
    const at = this.place(message)
    conversation.messages.splice(at, 1 + this.results(message).length)
    this.offerUndo('The message was deleted.', conversation, before)
    this.changed()
  }

  /** The results of a reply's calls, as far as there are any. */
  results(message) {
    const { messages } = this.store.open
    const after = messages.slice(messages.indexOf(message) + 1)
    const end = after.findIndex((other) => other.role !== 'tool')
    return end < 0 ? after : after.slice(0, end)
  }

  /** Stop the open conversation's reply. */
  stop() {
    this.run()?.controller.abort()
  }

  /** Stop all that run, and keep what they have written: the page may be about to go. */
  stopAll() {
    for (const [id, { message, controller }] of this.running) {
      controller.abort()
      message.finish = 'stopped'
      const conversation = this.store.find(id)
      if (conversation) this.store.save(conversation, { touch: false })
    }
  }

  // ---- within

  place(message) {
    return this.store.open.messages.indexOf(message)
  }

  valid() {
    const right = !Object.keys(problems(this.store.settings)).length
    if (!right) this.dispatchEvent(new Event('invalid'))
    return right
  }

  /** Cut the conversation before a place; it can be undone where more than `few` goes. */
  cut(at, what, few) {
    const conversation = this.store.open
    const before = [...conversation.messages]
    conversation.messages.splice(at)
    if (before.length - at > few) this.offerUndo(what, conversation, before)
  }

  offerUndo(what, conversation, before) {
    const run = () => {
      this.running.get(conversation.id)?.controller.abort()
      conversation.messages.splice(0, Infinity, ...before)
      this.changed(conversation)
    }
    this.dispatchEvent(new CustomEvent('undo', { detail: { what, run } }))
  }

  changed(conversation = this.store.open) {
    this.store.save(conversation)
    this.dispatchEvent(new Event('change'))
  }

  reply() {
    const message = { id: newId(), role: 'assistant', content: '' }
    this.store.open.messages.push(message)
    this.generate(message, { continues: false, probabilities: this.store.probabilities })
  }

  async generate(message, { continues, probabilities }) {
    const { settings, model } = this.store
    const conversation = this.store.open
    const run = { message, controller: new AbortController(), note: '' }
    const before = conversation.messages.slice(0, conversation.messages.indexOf(message))
    const sent = continues ? [...before, message] : before
    const body = chatBody(sent, { settings, model, probabilities, continues })
    const reply = replyInto(message)
    this.running.set(conversation.id, run)
    this.changed(conversation)
    try {
      await this.patiently(run, async (key) => {
        for await (const chunk of streamChat(body, key, run.controller.signal)) {
          run.note = progress(chunk)
          reply.add(chunk)
          this.dispatchEvent(new CustomEvent('delta', { detail: message }))
        }
      })
      reply.end()
    } catch (error) {
      reply.end(error.name === 'AbortError' ? 'stopped' : undefined)
      if (error.name !== 'AbortError') message.error = told(error)
    }
    this.running.delete(conversation.id)
    // Whatever was deleted meanwhile stays deleted.
    if (this.store.find(conversation.id) === conversation) this.store.save(conversation)
    this.dispatchEvent(new CustomEvent('end', { detail: message }))
  }

  /** Run a request; wait while the model loads, or until a busy server has room. */
  async patiently(run, request) {
    for (let tries = 0; ;) {
      try {
        return await withKey(request)
      } catch (error) {
        if (error.status !== 503 || run.message.content || run.message.reasoning) throw error
        if (await isReady(run.controller.signal)) {
          tries += 1
          if (tries > BUSY_TRIES) throw error
          this.note(run, `${error.message} Trying again …`)
          await pause((error.retryAfter ?? 1) * 1000, run.controller.signal)
        } else await this.untilReady(run)
      }
    }
  }

  async untilReady(run) {
    this.note(run, 'The model is being loaded; the reply begins when it is there.')
    do await pause(POLL, run.controller.signal)
    while (!(await isReady(run.controller.signal)))
  }

  note(run, words) {
    run.note = words
    this.dispatchEvent(new CustomEvent('delta', { detail: run.message }))
  }
}

/** @throws {DOMException} AbortError: the signal was given. */
function pause(ms, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => {
      clearTimeout(timer)
      reject(new DOMException('stopped', 'AbortError'))
    }
    const timer = setTimeout(() => {
      signal.removeEventListener('abort', abort)
      resolve()
    }, ms)
    if (signal.aborted) abort()
    else signal.addEventListener('abort', abort, { once: true })
  })
}

/** What is said while a long prompt is being computed. */
function progress({ prompt_progress: done }) {
  if (!done || done.processed >= done.total) return ''
  return `Reading the prompt: ${Math.floor((100 * done.processed) / done.total)} %`
}

function told(error) {
  if (error instanceof ApiError)
    return { message: error.message, status: error.status, field: error.param ?? undefined }
  return { message: `The page failed: ${error.message}`, status: 0 }
}
