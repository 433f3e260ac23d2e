/** The calls of a reply: shown folded, and answered by hand. */

import { glyph, h } from './dom.js'

/**
 * @param {string} text Arguments as the model wrote them.
 * @returns {string} With line breaks, where they are JSON.
 */
function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2)
  } catch {
    return text
  }
}

function fold(call) {
  return h(
    'details',
    { class: 'call' },
    h('summary', {}, glyph('next'), 'Call of ', h('code', {}, call.name || '…')),
    h('pre', { tabindex: 0, role: 'group', 'aria-label': 'Arguments' }, pretty(call.arguments)),
  )
}

function given(text) {
  return h(
    'details',
    { class: 'call result' },
    h('summary', {}, glyph('done'), 'Its result'),
    h('pre', { tabindex: 0, role: 'group', 'aria-label': 'Result' }, text),
  )
}

/**
 * @param {import('./types.js').Message} message
 * @param {object} state
 * @param {import('./types.js').Message[]} state.results Those that were given.
 * @param {boolean} state.asks Whether results may be typed in: the reply is done and nothing runs.
 * @param {(results: string[]) => boolean} state.send
 * @returns {HTMLElement}
 */
export function callsView(message, { results, asks, send }) {
  const host = h('div', { class: 'calls' })
  const answered = results.length > 0
  const areas = message.calls.map((call, i) => {
    host.append(fold(call))
    const result = results.find((other) => other.callId === call.id) ?? results[i]
    if (answered) host.append(given(result?.content ?? ''))
    if (answered || !asks) return null
    const area = h('textarea', {
      rows: 2,
      'aria-label': `Result of ${call.name}`,
      placeholder: `Result of ${call.name}: text or JSON`,
      spellcheck: 'false',
    })
    host.append(area)
    return area
  })
  if (asks && !answered) {
    const words = areas.length > 1 ? 'Send results' : 'Send result'
    const submit = () => send(areas.map((area) => area.value))
    host.append(h('button', { type: 'button', class: 'primary', onclick: submit }, words))
  }
  return host
}
