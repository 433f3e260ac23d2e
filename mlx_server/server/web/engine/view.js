/** Tiles and tables. What is there is changed, not made anew, so that nobody loses their place. */

import { h } from '../app/dom.js'
import { bytes, duration, percent, rate, short, whole } from './format.js'

/** More than this many tokens are no limit that anybody set. */
const ENDLESS = 1_000_000

const ENDS = {
  stop: 'Ended by the model or a stop string',
  length: 'Reached their limit of tokens',
  tool_calls: 'Called a tool',
  abort: 'Given up: client gone, or out of time',
  error: 'Failed',
}

/** @param {HTMLElement} node @param {string} text */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text
}

/**
 * Keep one child of `host` for each item.
 *
 * @template T
 * @param {HTMLElement} host
 * @param {T[]} items In their order.
 * @param {(item: T, place: number) => string} name Of none but this one.
 * @param {(item: T) => HTMLElement} make
 * @param {(node: HTMLElement, item: T) => void} change
 */
function keep(host, items, name, make, change) {
  const old = new Map([...host.children].map((node) => [node.dataset.name, node]))
  items.forEach((item, i) => {
    const key = name(item, i)
    const node = old.get(key) ?? make(item)
    old.delete(key)
    node.dataset.name = key
    change(node, item)
    if (host.children[i] !== node) host.insertBefore(node, host.children[i] ?? null)
  })
  for (const node of old.values()) node.remove()
}

// ---- tiles

/** Name, value and remark of each, from the figures and the history's latest point. */
const TILES = [
  ['running', 'Running', (f) => whole(f.engine.running ?? 0), (f) => slotsText(f)],
  ['waiting', 'Waiting', (f) => whole(f.engine.waiting ?? 0), () => 'for a slot or memory'],
  ['prompt', 'Prompt tokens/s', (f, now) => rate(now?.promptRate), (f) => total(f, 'prompt')],
  ['reply', 'Reply tokens/s', (f, now) => rate(now?.replyRate), (f) => total(f, 'reply')],
  ['hits', 'Prefix hits', (f) => percent(hitShare(f.engine)), (f) => savedText(f.engine)],
  ['memory', 'Memory', (f) => bytes(f.engine.active_memory), (f) => kvText(f.engine)],
]

function slotsText({ models }) {
  return `of ${whole(models.reduce((sum, model) => sum + model.slots, 0))} slots`
}

function total({ engine }, kind) {
  const name = kind === 'prompt' ? 'prompt_tokens_computed' : 'generated_tokens'
  return `${short(engine[name] ?? 0)} in all`
}

function hitShare({ prefix_hits: hits = 0, prefix_misses: misses = 0 }) {
  return hits + misses ? (100 * hits) / (hits + misses) : null
}

function savedText({ prompt_tokens_cached: saved = 0 }) {
  return `${short(saved)} tokens saved`
}

function kvText({ kv_bytes: kv = 0, kv_budget_bytes: budget = 0 }) {
  const used = `${bytes(kv)} of keys and values`
  return budget ? `${used}, at most ${bytes(budget)}` : used
}

/**
 * @param {import('./figures.js').Figures} figures
 * @param {import('./history.js').Point} [now]
 */
export function showTiles(figures, now) {
  const make = ([name, label]) =>
    h('div', { id: `tile-${name}` }, h('dt', {}, label), h('dd', { class: 'big' }), h('dd', {}))
  keep(document.getElementById('tiles'), TILES, (tile) => tile[0], make, (node, tile) => {
    const [, big, small] = node.children
    write(big, tile[2](figures, now))
    write(small, tile[3](figures))
  })
}

// ---- rows

function bar(label) {
  return h('td', {}, h('progress', { max: 1, 'aria-label': label }), h('span', { class: 'count' }))
}

function makeRow(row) {
  const place = row.slot === null ? 'a row without a slot' : `slot ${row.slot}`
  return h(
    'tr',
    {},
    h('th', { scope: 'row' }, row.slot === null ? '–' : String(row.slot)),
    h('td', { class: 'name', title: row.model }, row.model),
    h('td', {}, h('span', { class: 'state' })),
    bar(`Prompt of ${place}`),
    bar(`Reply of ${place}`),
    h('td', { class: 'right' }),
    h('td', { class: 'right' }),
  )
}

function changeRow(node, row) {
  const [, , state, prompt, reply, time, speed] = node.children
  node.dataset.state = row.state
  write(state.firstChild, row.state)
  const { prompt_tokens: all, prompt_tokens_done: done, cached_tokens: cached } = row
  measure(prompt, done, all, cached ? `, ${whole(cached)} cached` : '')
  const { decoded_tokens: decoded, tokens_left: left } = row
  measure(reply, decoded, left > ENDLESS ? null : decoded + left, '')
  write(time, duration(row.seconds))
  write(speed, rate(row.tokens_per_second))
}

function measure(cell, done, all, more) {
  const [progress, text] = cell.children
  progress.hidden = all === null
  if (all !== null) {
    progress.max = Math.max(1, all)
    progress.value = done
  }
  write(text, (all === null ? whole(done) : `${whole(done)} / ${whole(all)}`) + more)
}

/** @param {object[]} rows */
export function showRows(rows) {
  const host = document.querySelector('#rows tbody')
  // Several may be without a slot at the same time.
  const name = (row, place) => `${row.model} ${row.slot ?? `without ${place}`}`
  keep(host, rows, name, makeRow, changeRow)
  document.getElementById('rows').classList.toggle('one-model', oneModel(rows))
  hideEmpty('rows', rows.length)
}

function oneModel(rows) {
  return rows.every((row) => row.model === rows[0].model)
}

function hideEmpty(name, count) {
  document.getElementById(name).hidden = !count
  document.getElementById(`${name}-none`).hidden = Boolean(count)
}

// ---- models and outcomes

function adapterText({ id, name, path, scale }) {
  const called = name ?? path.split('/').findLast(Boolean) ?? path
  const number = id === null ? '' : `${id}: `
  return `${number}${called}${scale === null ? '' : ` × ${scale}`}`
}

/** @param {object[]} models */
export function showModels(models) {
  const make = (model) =>
    h(
      'tr',
      {},
      h('th', { scope: 'row', class: 'name', title: model.id }, model.id),
      ...Array.from({ length: 4 }, () => h('td', { class: 'right' })),
      h('td', {}, h('ul', { class: 'plain' })),
    )
  const host = document.querySelector('#models tbody')
  keep(host, models, (model) => model.id, make, (node, model) => {
    const [, parameters, weights, context, slots, adapters] = node.children
    write(parameters, short(model.parameters))
    write(weights, bytes(model.bytes))
    write(context, whole(model.context_length))
    write(slots, model.kind === 'text' ? whole(model.slots) : 'embeddings')
    const item = (adapter) => h('li', { title: adapter.path })
    const list = adapters.firstChild
    keep(list, model.adapters, (adapter) => adapter.path, item, (entry, adapter) =>
      write(entry, adapterText(adapter)),
    )
  })
  hideEmpty('models', models.length)
}

/** @param {Record<string, number>} outcomes */
export function showOutcomes(outcomes) {
  const make = ([how]) =>
    h('tr', {}, h('th', { scope: 'row' }, ENDS[how] ?? how), h('td', { class: 'right' }))
  const host = document.querySelector('#outcomes tbody')
  const order = Object.keys(ENDS)
  const found = Object.entries(outcomes).filter(([, count]) => count)
  found.sort(([a], [b]) => order.indexOf(a) - order.indexOf(b))
  keep(host, found, ([how]) => how, make, (node, [, count]) => write(node.children[1], whole(count)))
  hideEmpty('outcomes', found.length)
}
