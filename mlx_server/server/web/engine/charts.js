/** Live charts, each with a legend that tells the values and a table of them. */

import { h } from '../app/dom.js'
import uPlot from '../vendor/uplot.esm.js'
import { ago, bytes, percent, rate, short, whole } from './format.js'
import { SPAN } from './history.js'

const HEIGHT = 190
/** Seconds that a chart shows: the fewest that hold all there is. */
const SPANS = [60, 120, 300, SPAN]
/** Seconds between the rows of a chart's table. */
const TABLE_STEP = 30
/** Seconds between two lines of the time axis. */
const STEPS = [15, 30, 60, 120, 300]
const COUNTS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]

/**
 * A chart's series are fields of the history's points; `color` is a series of the theme.
 *
 * @typedef {{name: string, label: string, color: number, text: (value: number | null) => string,
 *   dash?: number[], steps?: boolean, fill?: boolean, scale?: string}} Series
 * @typedef {{id: string, title: string, series: Series[], axis: (value: number) => string,
 *   most?: number, incrs?: number[], right?: (value: number) => string}} Spec `most`: where the
 *   axis ends at least; `right`: labels of the scale "right".
 */

/** @type {Spec[]} */
export const SPECS = [
  {
    id: 'speed',
    title: 'Tokens per second',
    axis: short,
    most: 10,
    series: [
      { name: 'replyRate', label: 'Reply', color: 1, text: rate, fill: true },
      { name: 'promptRate', label: 'Prompt', color: 2, text: rate, dash: [6, 3] },
    ],
  },
  {
    id: 'rows',
    title: 'Rows',
    axis: whole,
    most: 1,
    incrs: COUNTS,
    series: [
      { name: 'running', label: 'Running', color: 1, text: whole, steps: true, fill: true },
      { name: 'waiting', label: 'Waiting', color: 2, text: whole, steps: true, dash: [6, 3] },
    ],
  },
  {
    id: 'prefix',
    title: 'Prefix cache',
    axis: percent,
    most: 100,
    right: short,
    series: [
      { name: 'share', label: 'Hits of the last minute', color: 3, text: percent },
      { name: 'saved', label: 'Tokens saved', color: 5, text: whole, dash: [6, 3], scale: 'right' },
    ],
  },
  {
    id: 'memory',
    title: 'Memory',
    axis: bytes,
    most: 1e6,
    series: [
      { name: 'active', label: 'Arrays', color: 1, text: bytes, fill: true },
      { name: 'peak', label: 'Arrays, the most', color: 6, text: bytes, dash: [2, 3] },
      { name: 'kv', label: 'Keys and values', color: 3, text: bytes },
      { name: 'prefix', label: 'Prefixes', color: 4, text: bytes, dash: [6, 3] },
    ],
  },
]

export class Chart {
  /**
   * @param {Spec} spec
   * @param {HTMLElement} host Where it is appended.
   */
  constructor(spec, host) {
    this.spec = spec
    this.names = spec.series.map((series) => series.name)
    this.history = null
    /** The point that is pointed at; null: the latest. */
    this.index = null
    this.#build(host)
    this.colors = this.#readColors()
    this.plot = new uPlot(this.#options(), [[], ...this.names.map(() => [])], this.area)
    new ResizeObserver(() => this.#fit()).observe(this.area)
    // A theme is chosen on the page, or changes with the system's.
    const recolor = () => {
      this.colors = this.#readColors()
      this.plot.redraw(false)
    }
    new MutationObserver(recolor).observe(document.documentElement, {
      attributeFilter: ['data-theme'],
    })
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', recolor)
  }

  /** @param {import('./history.js').History} history */
  show(history) {
    this.history = history
    this.plot.setData(history.columns(this.names))
    this.#showLegend()
    this.#showTable()
  }

  // ---- elements

  #build(host) {
    const { id, title, series } = this.spec
    this.when = h('span', { class: 'when' }, 'now')
    this.values = series.map(() => h('dd', {}, '–'))
    this.swatches = series.map(({ color, dash }) =>
      h('span', { class: `swatch series-${color} ${lineOf(dash)}`, 'aria-hidden': 'true' }),
    )
    const entries = series.map(({ label }, i) =>
      h('div', {}, h('dt', {}, this.swatches[i], label), this.values[i]),
    )
    this.area = h('div', { class: 'plot', role: 'img' })
    this.body = h('tbody', {})
    const head = ['Time', ...series.map(({ label }) => label)]
    const columns = head.map((label) => h('th', { scope: 'col' }, label))
    const table = h('table', {}, h('thead', {}, h('tr', {}, ...columns)), this.body)
    const region = { tabindex: '0', role: 'region', 'aria-label': `${title}, as a table` }
    this.details = h(
      'details',
      { ontoggle: () => this.#showTable() },
      h('summary', {}, 'Table'),
      h('div', { class: 'scroll', ...region }, table),
    )
    host.append(
      h(
        'figure',
        { id: `chart-${id}`, class: 'chart', 'aria-labelledby': `chart-${id}-title` },
        h('figcaption', {}, h('span', { id: `chart-${id}-title` }, title), this.when),
        h('dl', { class: 'legend' }, ...entries),
        this.area,
        this.details,
      ),
    )
  }

  #showLegend() {
    const { points, latest } = this.history ?? {}
    const point = (this.index === null ? null : points?.[this.index]) ?? latest
    if (!point) return
    const when = ago(latest.uptime - point.uptime)
    if (this.when.textContent !== when) this.when.textContent = when
    const texts = this.spec.series.map(({ name, text }) => text(point[name]))
    texts.forEach((text, i) => {
      if (this.values[i].textContent !== text) this.values[i].textContent = text
    })
    const told = this.spec.series.map(({ label }, i) => `${label} ${texts[i]}`).join(', ')
    this.area.setAttribute('aria-label', `${this.spec.title}, ${when}: ${told}`)
  }

  #showTable() {
    if (!this.details.open || !this.history?.latest) return
    const rows = []
    for (let seconds = 0; seconds <= SPAN; seconds += TABLE_STEP) {
      const point = this.history.before(seconds)
      if (!point) break
      const cells = this.spec.series.map(({ name, text }) => h('td', {}, text(point[name])))
      rows.push(h('tr', {}, h('th', { scope: 'row' }, ago(seconds)), ...cells))
    }
    this.body.replaceChildren(...rows)
  }

  // ---- the drawing

  /** As the style sheet has them: canvases know no variables of CSS. */
  #readColors() {
    const own = getComputedStyle(this.area)
    const series = this.swatches.map((swatch) => getComputedStyle(swatch).color)
    return { text: own.color, line: own.borderTopColor, font: `12px ${own.fontFamily}`, series }
  }

  #options() {
    const series = this.spec.series.map((item, i) => ({
      label: item.label,
      scale: item.scale ?? 'y',
      stroke: () => this.colors.series[i],
      fill: item.fill ? () => faint(this.colors.series[i]) : undefined,
      width: 1.75,
      dash: item.dash,
      paths: item.steps ? uPlot.paths.stepped({ align: 1 }) : uPlot.paths.linear(),
      points: { show: (plot, index) => isAlone(plot.data[index]) },
      spanGaps: false,
    }))
    const upTo = (most) => (plot, least, greatest) => [0, Math.max(most, (greatest ?? 0) * 1.08)]
    const most = this.spec.most ?? 1
    return {
      width: this.area.clientWidth || 400,
      height: HEIGHT,
      padding: [8, this.spec.right ? 0 : 12, 0, 0],
      legend: { show: false },
      cursor: {
        sync: { key: 'engine' },
        drag: { x: false, y: false },
        points: { size: 7 },
        y: false,
      },
      hooks: {
        setCursor: [
          (plot) => {
            this.index = plot.cursor.left >= 0 ? plot.cursor.idx ?? null : null
            this.#showLegend()
          },
        ],
      },
      scales: {
        x: { time: false, range: () => [-this.#span(), 0] },
        y: { range: most === 100 ? () => [0, 100] : upTo(most) },
        right: { range: upTo(10) },
      },
      series: [{}, ...series],
      axes: this.#axes(),
    }
  }

  #axes() {
    const common = {
      stroke: () => this.colors.text,
      font: this.colors.font,
      grid: { stroke: () => this.colors.line, width: 1 },
      ticks: { stroke: () => this.colors.line, width: 1, size: 4 },
      gap: 4,
    }
    const { axis, right, incrs } = this.spec
    const axes = [
      { ...common, size: 28, space: 64, incrs: STEPS, values: (_, splits) => splits.map(before) },
      { ...common, size: 60, incrs, values: (_, splits) => splits.map(axis) },
    ]
    if (right) {
      const own = { side: 1, scale: 'right', size: 52, grid: { show: false } }
      axes.push({ ...common, ...own, values: (_, splits) => splits.map(right) })
    }
    return axes
  }

  #span() {
    const { points = [], latest } = this.history ?? {}
    const age = latest ? latest.uptime - points[0].uptime : 0
    return SPANS.find((span) => span >= age) ?? SPAN
  }

  #fit() {
    const width = this.area.clientWidth
    if (width && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT })
  }
}

function lineOf(dash) {
  return !dash ? 'solid' : dash[0] > dash[1] ? 'dashed' : 'dotted'
}

/** A label of the time axis. */
function before(seconds) {
  if (seconds === 0) return 'now'
  return seconds % 60 ? `−${-seconds} s` : `−${-seconds / 60} min`
}

/** Whether a series has one value only, which draws no line. */
function isAlone(values) {
  return values.filter((value) => value !== null).length === 1
}

/** A computed color, such as "rgb(1, 2, 3)", hardly covering. */
function faint(color) {
  return color.replace(/^rgb\(([^)]*)\)$/, 'rgba($1, 0.1)')
}
