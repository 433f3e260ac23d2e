/** The line under a reply: what it cost, and why it ended. */

import { h } from './dom.js'

const numbers = new Intl.NumberFormat('en')

/**
 * @param {import('./types.js').Message} message A reply that is done.
 * @returns {HTMLElement}
 */
export function statsLine(message) {
  const { prompt, cached, completion, counted, first, speed } = message.stats ?? {}
  const parts = []
  const add = (value, title) => parts.push(h('span', { title }, value))
  if (prompt !== undefined) {
    const hits = cached ? ` (${numbers.format(cached)} cached)` : ''
    add(
      `${numbers.format(prompt)} prompt tokens${hits}`,
      'Tokens of the prompt, and those from the cache',
    )
  }
  if (completion)
    add(
      `${counted ? 'about ' : ''}${numbers.format(completion)} in the reply`,
      'Tokens of the reply',
    )
  if (first !== undefined) add(`${seconds(first)} to the first`, 'From sending to the first token')
  if (speed) add(`${speed.toFixed(speed < 10 ? 1 : 0)} tokens/s`, 'Speed of the reply')
  if (message.finish === 'stopped') add('stopped', 'You stopped it')
  if (message.model) add(message.model, 'The model that replied')
  return h('p', { class: 'stats' }, ...parts)
}

/**
 * @param {number} ms
 * @returns {string} Like "0.24 s" or "2 min 5 s".
 */
export function seconds(ms) {
  const s = ms / 1000
  if (s >= 60) return `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`
  return `${s.toFixed(s < 1 ? 2 : 1)} s`
}
