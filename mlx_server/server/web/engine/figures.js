/** The server's figures: asking for them again and again, but not more than is of use. */

import { ApiError } from '../app/api.js'
import { ROOT } from '../app/header.js'
import { withKey } from '../app/keys.js'

export const SHOWN = 1000
/** Milliseconds between two questions while nobody looks. */
export const HIDDEN = 15_000
const LONGEST = 30_000
const PATIENCE = 10_000

/**
 * What GET /engine/figures answers; bytes, seconds and tokens.
 *
 * @typedef {object} Figures
 * @property {string} version
 * @property {number} uptime
 * @property {string} status "ready", or why requests are refused.
 * @property {string} device
 * @property {object[]} models
 * @property {Record<string, number>} engine
 * @property {Record<string, number>} outcomes
 * @property {object[]} rows
 */

/**
 * @param {string | null} key
 * @returns {Promise<Figures>}
 * @throws {ApiError}
 */
async function load(key) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {}
  let response, body
  try {
    const signal = AbortSignal.timeout(PATIENCE)
    response = await fetch(new URL('engine/figures', ROOT), { headers, signal, cache: 'no-store' })
    body = await response.json()
  } catch {
    const said = response ? `answered ${response.status}` : 'cannot be reached'
    throw new ApiError(`The server ${said}.`, response?.ok === false ? response.status : 0)
  }
  if (response.ok) return body
  throw new ApiError(body?.error?.message ?? `It answered ${response.status}.`, response.status)
}

/**
 * Asks once a second; seldom while the page is hidden, and ever more seldom while there is no
 * answer.
 */
export class Poller {
  /**
   * @param {{onfigures: (figures: Figures) => void,
   *   onfailure: (error: ApiError, seconds: number | null) => void}} listeners `seconds` until it
   *   asks again; null: not before `resume`.
   */
  constructor({ onfigures, onfailure }) {
    this.onfigures = onfigures
    this.onfailure = onfailure
    this.failures = 0
    this.paused = false
    this.asking = false
    this.timer = 0
    document.addEventListener('visibilitychange', () => this.#wake())
    addEventListener('online', () => this.#wake())
  }

  pause() {
    this.paused = true
    clearTimeout(this.timer)
  }

  resume() {
    this.paused = false
    this.failures = 0
    this.#ask()
  }

  /** Who comes back to the page wants to see what is now. */
  #wake() {
    if (document.visibilityState === 'visible' && !this.paused) this.#ask()
  }

  #delay() {
    const backOff = this.failures ? Math.min(LONGEST, SHOWN * 2 ** this.failures) : 0
    return Math.max(backOff, document.visibilityState === 'visible' ? SHOWN : HIDDEN)
  }

  async #ask() {
    clearTimeout(this.timer)
    if (this.asking) return
    this.asking = true
    try {
      const figures = await withKey(load)
      this.failures = 0
      if (!this.paused) this.onfigures(figures)
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      this.failures++
      const refused = error.status === 401
      if (this.paused && !refused) return // who paused meanwhile waits for nothing
      // Whoever gives no key is not asked for one every second.
      if (refused) this.pause()
      this.onfailure(error, refused ? null : this.#delay() / 1000)
    } finally {
      this.asking = false
      if (!this.paused) this.timer = setTimeout(() => this.#ask(), this.#delay())
    }
  }
}
