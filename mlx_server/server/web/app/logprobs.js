/** A reply token by token: each in the colour, and above a line, of its probability. */

import { h } from './dom.js'

/** From where on a token counts as likely as its class says; the last has the rest. */
const CLASSES = [
  [0.9, 'p-sure'],
  [0.6, 'p-likely'],
  [0.3, 'p-open'],
  [0, 'p-unlikely'],
]

/** What is drawn of characters that have no shape. */
const shapes = { '\n': '⏎', '\t': '⇥', ' ': '␣' }
const visible = (text) => text.replace(/[\n\t ]/g, (character) => shapes[character]) || '∅'

function percent(logprob) {
  const value = 100 * Math.exp(logprob)
  return value < 0.1 ? '<0.1 %' : `${value.toFixed(value > 99.9 || value < 99 ? 1 : 2)} %`
}

function describe({ t, p, top }) {
  const others = top.map(([text, logprob]) => `${visible(text)} ${percent(logprob)}`)
  const list = others.length ? `; likeliest: ${others.join(', ')}` : ''
  return `${visible(t)} ${percent(p)}${list}`
}

/**
 * The tokens as a list with one tab stop: the arrow keys go from one to the next.
 *
 * @param {import('./types.js').Token[]} tokens
 * @returns {HTMLElement}
 */
export function tokenView(tokens) {
  const list = h('div', {
    class: 'tokens',
    role: 'listbox',
    'aria-label': 'Tokens with their probabilities',
    'aria-orientation': 'horizontal',
  })
  const spans = tokens.map((token, i) => {
    const likely = CLASSES.find(([least]) => Math.exp(token.p) >= least)[1]
    const shown = token.t.replace(/\n/g, '⏎\n')
    return h(
      'span',
      {
        class: `token ${likely}`,
        role: 'option',
        'aria-selected': 'false',
        'aria-label': describe(token),
        tabindex: i ? -1 : 0,
      },
      shown || '∅',
    )
  })
  list.append(...spans)
  list.addEventListener('keydown', (event) => step(event, spans))
  for (const [show, hide] of [
    ['mouseover', 'mouseout'],
    ['focusin', 'focusout'],
  ]) {
    list.addEventListener(show, ({ target }) => {
      const at = spans.indexOf(target)
      if (at >= 0) showCard(target, tokens[at])
    })
    list.addEventListener(hide, hideCard)
  }
  return list
}

function step(event, spans) {
  const at = spans.indexOf(event.target)
  const steps = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: spans.length - 1 }
  const next = spans[steps[event.key]]
  if (event.key === 'Escape') hideCard()
  if (!next) return
  event.preventDefault()
  spans[at].tabIndex = -1
  next.tabIndex = 0
  next.focus()
}

/** The one card with a token's alternatives; it says nothing that the token's label does not. */
function card() {
  const found = document.getElementById('token-card')
  if (found) return found
  const made = h('div', { id: 'token-card', role: 'tooltip', hidden: true })
  document.body.append(made)
  return made
}

function showCard(target, token) {
  const host = card()
  const rows = token.top.map(([text, logprob]) => {
    const bar = h('span', { class: 'bar' })
    bar.style.setProperty('--share', `${Math.round(100 * Math.exp(logprob))}%`)
    const chosen = text === token.t ? 'chosen' : null
    return h(
      'tr',
      { class: chosen },
      h('td', {}, h('code', {}, visible(text))),
      h('td', {}, percent(logprob)),
      h('td', {}, bar),
    )
  })
  const head = h('p', {}, h('code', {}, visible(token.t)), ` ${percent(token.p)}`)
  host.replaceChildren(head, h('table', {}, h('tbody', {}, ...rows)))
  host.hidden = false
  const box = target.getBoundingClientRect()
  const { width, height } = host.getBoundingClientRect()
  const above = box.bottom + height + 8 > innerHeight
  host.style.left = `${Math.max(8, Math.min(box.left, innerWidth - width - 8))}px`
  host.style.top = `${above ? box.top - height - 6 : box.bottom + 6}px`
}

function hideCard() {
  card().hidden = true
}

/** A legend of the classes. */
export function legend() {
  const words = ['≥ 90 %', '≥ 60 %', '≥ 30 %', 'less']
  const entries = CLASSES.map(([, name], i) => h('span', { class: `token ${name}` }, words[i]))
  return h('p', { class: 'legend' }, 'Probability: ', ...entries)
}
