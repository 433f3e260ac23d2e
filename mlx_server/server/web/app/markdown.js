/** Markdown to elements, also while it is still being written.
 *
 * The source is cut into blocks (paragraphs, lists, code …). Blocks before the last two no
 * longer change when more text comes, so only the source behind them is read again:
 *
 *     | settled: kept as they are | two last blocks: read again with every piece |
 *
 * At the end all of it is read once more, and only blocks that differ are made anew; so what was
 * streamed is what would be shown of the whole (e.g. a link whose address stands at the end).
 */

import { Lexer, Marked } from '../vendor/marked.esm.js'
import { codeBlock, updateCode } from './code.js'
import { sanitized } from './sanitize.js'

const OPEN_BLOCKS = 2

const escapes = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&#39;' }
const escaped = (text) => text.replace(/[&<>"']/g, (character) => escapes[character])

const marked = new Marked({
  gfm: true,
  renderer: {
    // Markup in a reply is text about markup; only the line break is one that models mean.
    html: ({ text }) => (/^<br\s*\/?>$/i.test(text.trim()) ? '<br>' : escaped(text)),
    // Nothing is loaded from elsewhere: an image is a link to it.
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || 'image')}</a>`,
    checkbox: ({ checked }) => (checked ? '☑ ' : '☐ '),
  },
})

/** A block of markup in the middle of a reply is a paragraph of text. */
function element(token) {
  if (token.type === 'code') return codeBlock(token.text, language(token), { open: isOpen(token) })
  const host = document.createElement('div')
  host.className = `block ${token.type}`
  const list = [token]
  list.links = token.links ?? {}
  host.append(
    sanitized(token.type === 'html' ? `<p>${marked.parser(list)}</p>` : marked.parser(list)),
  )
  for (const code of host.querySelectorAll('pre > code')) {
    const named = code.className.replace(/^language-/, '')
    code.parentElement.replaceWith(codeBlock(code.textContent.replace(/\n$/, ''), named))
  }
  for (const table of host.querySelectorAll('table')) {
    const scroller = document.createElement('div')
    scroller.className = 'scroll-sideways'
    table.replaceWith(scroller)
    scroller.append(table)
  }
  return host
}

function language(token) {
  return (token.lang ?? '').trim().split(/\s/)[0].toLowerCase()
}

/** Whether a fence has no end yet. */
function isOpen({ raw }) {
  const fence = /^ {0,3}(`{3,}|~{3,})/.exec(raw)?.[1]
  if (!fence) return false
  const last = raw.trimEnd().split('\n').slice(1).at(-1)?.trim() ?? ''
  return !(last.startsWith(fence) && last === fence[0].repeat(last.length))
}

function lex(source) {
  const tokens = new Lexer(marked.defaults).lex(source)
  return {
    blocks: tokens.filter((token) => token.type !== 'space' && token.type !== 'def'),
    tokens,
  }
}

/** Shows a text that grows in an element. */
export class MarkdownView {
  /** @param {HTMLElement} host What is in it belongs to this view. */
  constructor(host) {
    this.host = host
    this.source = ''
    this.settled = 0 // characters of the source
    /** @type {{raw: string, node: HTMLElement}[]} The settled blocks, then the open ones. */
    this.shown = []
    this.settledBlocks = 0
    this.isPlain = false
  }

  /**
   * @param {string} source What is to be shown; usually what was, and more.
   * @param {{done: boolean}} options `done`: no more will come.
   */
  update(source, { done }) {
    const anew = done || !source.startsWith(this.source)
    if (anew) this.settled = this.settledBlocks = 0
    this.source = source
    if (this.isPlain && !anew) return this.showPlain()
    if (this.isPlain) this.clear()
    try {
      const { blocks, tokens } = lex(source.slice(this.settled))
      this.place(blocks)
      if (!done) this.settle(blocks, tokens)
    } catch {
      // Nested thousands deep, as a model writes that repeats itself: more than the stack holds.
      this.showPlain()
    }
  }

  /** Show the source as it is. */
  showPlain() {
    this.clear()
    this.isPlain = true
    const text = document.createElement('p')
    text.className = 'plain'
    text.textContent = this.source
    this.host.replaceChildren(text)
  }

  clear() {
    this.host.replaceChildren()
    this.shown = []
    this.settled = this.settledBlocks = 0
    this.isPlain = false
  }

  /** Make the shown blocks behind the settled ones those that are given. */
  place(blocks) {
    blocks.forEach((token, i) => {
      const at = this.settledBlocks + i
      const old = this.shown[at]
      if (old?.raw === token.raw && old.links === linksOf(token)) return
      const fresh = { raw: token.raw, links: linksOf(token), node: null, token }
      if (old && old.token.type === 'code' && token.type === 'code' && sameHead(old.token, token)) {
        fresh.node = old.node
        updateCode(old.node, token.text, language(token), { open: isOpen(token) })
      } else {
        fresh.node = element(token)
        if (old) old.node.replaceWith(fresh.node)
        else this.host.append(fresh.node)
      }
      this.shown[at] = fresh
    })
    for (const { node } of this.shown.splice(this.settledBlocks + blocks.length)) node.remove()
  }

  settle(blocks, tokens) {
    const count = blocks.length - OPEN_BLOCKS
    if (count <= 0) return
    const end = tokens.indexOf(blocks[count - 1]) + 1
    // The lexer's raw texts, one after the other, are the source, but for its line ends and tabs.
    const raw = tokens
      .slice(0, end)
      .map((token) => token.raw)
      .join('')
    if (!this.source.startsWith(raw, this.settled)) return
    this.settled += raw.length
    this.settledBlocks += count
  }
}

/** What a block's links come to: the same text differs where an address was given later. */
function linksOf(token) {
  const found = []
  marked.walkTokens([token], ({ type, href }) => type === 'link' && found.push(href))
  return found.join(' ')
}

function sameHead(a, b) {
  return language(a) === language(b)
}

/**
 * @param {HTMLElement} host
 * @param {string} source
 */
export function showMarkdown(host, source) {
  new MarkdownView(host).update(source, { done: true })
}
