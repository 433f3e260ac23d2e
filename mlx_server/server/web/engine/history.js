/** What the figures were in the last minutes. The server's uptime is the clock: nobody sets it. */

/** Seconds that are shown. */
export const SPAN = 600

/** They only grow, as long as it is the same server. */
const COUNTERS = ['prompt_tokens_computed', 'generated_tokens', 'prefix_hits', 'prefix_misses']

/** Seconds over which the share of prefix hits is taken: prompts are few. */
const WINDOW = 60

/**
 * @typedef {object} Point
 * @property {number} uptime
 * @property {number | null} promptRate Tokens a second since the point before; null at first.
 * @property {number | null} replyRate
 * @property {number} running
 * @property {number} waiting
 * @property {number | null} share Of the prompts of the last minute, how many began with something
 *   known, in percent; null: there were none.
 * @property {number} saved Prompt tokens that did not have to be computed, in all.
 * @property {number} kv Bytes, as the next.
 * @property {number} prefix
 * @property {number} active
 * @property {number} peak
 */

export class History {
  constructor() {
    /** @type {Point[]} */
    this.points = []
    /** @type {{uptime: number, engine: Record<string, number>}[]} */
    this.readings = []
  }

  /** @returns {Point | undefined} */
  get latest() {
    return this.points.at(-1)
  }

  /**
   * @param {import('./figures.js').Figures} figures
   * @returns {boolean} Whether another server answers than before, so that all begins anew.
   */
  add({ uptime, engine }) {
    const before = this.readings.at(-1)
    const reading = { uptime, engine }
    const anew = before !== undefined && isAnother(before, reading)
    if (anew) this.points = this.readings = []
    if (before && !anew && uptime === before.uptime) return false
    const last = this.readings.at(-1)
    const begin = this.readings.findLast((other) => other.uptime <= uptime - WINDOW)
    this.readings = [...this.readings, reading]
    this.points = [
      ...this.points,
      {
        uptime,
        promptRate: perSecond(last, reading, 'prompt_tokens_computed'),
        replyRate: perSecond(last, reading, 'generated_tokens'),
        running: engine.running ?? 0,
        waiting: engine.waiting ?? 0,
        share: share(begin ?? this.readings[0], reading),
        saved: engine.prompt_tokens_cached ?? 0,
        kv: engine.kv_bytes ?? 0,
        prefix: engine.prefix_bytes ?? 0,
        active: engine.active_memory ?? 0,
        peak: engine.peak_memory ?? 0,
      },
    ]
    // One more than is shown, for the line that enters from the left.
    const firstShown = this.points.findIndex((point) => point.uptime >= uptime - SPAN)
    this.points = this.points.slice(Math.max(0, firstShown - 1))
    const needed = this.readings.findLastIndex((item) => item.uptime <= uptime - WINDOW)
    this.readings = this.readings.slice(Math.max(0, needed))
    return anew
  }

  /**
   * @param {string[]} names Fields of points.
   * @returns {(number | null)[][]} Seconds before now (negative), and a list for each field.
   */
  columns(names) {
    const now = this.latest?.uptime ?? 0
    const times = this.points.map((point) => point.uptime - now)
    return [times, ...names.map((name) => this.points.map((point) => point[name]))]
  }

  /**
   * @param {number} seconds Before now.
   * @returns {Point | null} The last one by then; null: there was none.
   */
  before(seconds) {
    const then = (this.latest?.uptime ?? 0) - seconds
    return this.points.findLast((point) => point.uptime <= then + 0.01) ?? null
  }
}

/** Its uptime alone may be the longer one, where nobody looked for a while. */
function isAnother(before, now) {
  return now.uptime < before.uptime || COUNTERS.some((name) => difference(before, now, name) < 0)
}

function difference(from, to, name) {
  return (to.engine[name] ?? 0) - (from.engine[name] ?? 0)
}

function perSecond(from, to, name) {
  return from ? Math.max(0, difference(from, to, name)) / (to.uptime - from.uptime) : null
}

function share(from, to) {
  const hits = difference(from, to, 'prefix_hits')
  const all = hits + difference(from, to, 'prefix_misses')
  return all > 0 ? (100 * hits) / all : null
}
