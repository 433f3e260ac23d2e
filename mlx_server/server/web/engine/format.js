/** Numbers as the page writes them. */

const WHOLE = new Intl.NumberFormat('en')
const NONE = '–'

/**
 * @param {number | null | undefined} value
 * @returns {string} With commas between thousands; a dash where nothing is known.
 */
export function whole(value) {
  return known(value) ? WHOLE.format(Math.round(value)) : NONE
}

/**
 * @param {number | null | undefined} value A speed.
 * @returns {string} With a decimal where that tells something.
 */
export function rate(value) {
  if (!known(value)) return NONE
  return value > 0 && value < 99.95 ? value.toFixed(1) : whole(value)
}

/**
 * @param {number | null | undefined} value From 0 to 100.
 * @returns {string}
 */
export function percent(value) {
  return known(value) ? `${Math.round(value)} %` : NONE
}

/**
 * @param {number | null | undefined} value A number of bytes.
 * @returns {string} Three digits and a decimal unit.
 */
export function bytes(value) {
  return known(value) ? scaled(value, [' B', ' kB', ' MB', ' GB', ' TB']) : NONE
}

/**
 * @param {number | null | undefined} value
 * @returns {string} Three digits and k, M or B.
 */
export function short(value) {
  return known(value) ? scaled(value, ['', 'k', 'M', 'B', 'T']) : NONE
}

/**
 * @param {number | null | undefined} seconds
 * @returns {string} Its two largest units.
 */
export function duration(seconds) {
  if (!known(seconds)) return NONE
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`
  const left = Math.round(seconds)
  if (left < 60) return `${left} s`
  if (left < 3600) return join(left, 60, 'min', 1, 's')
  if (left < 86400) return join(left, 3600, 'h', 60, 'min')
  return join(left, 86400, 'd', 3600, 'h')
}

/**
 * @param {number} seconds Before now.
 * @returns {string}
 */
export function ago(seconds) {
  return seconds < 0.5 ? 'now' : `${duration(Math.round(seconds)).replace('.0 s', ' s')} ago`
}

function known(value) {
  return value !== null && value !== undefined && !Number.isNaN(value)
}

function scaled(value, units) {
  let step = 0
  while (Math.abs(value) >= 999.5 && step < units.length - 1) {
    value /= 1000
    step++
  }
  const digits = step === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2
  return String(Number(value.toFixed(digits))) + units[step]
}

function join(value, large, largeName, small, smallName) {
  const rest = Math.floor((value % large) / small)
  const head = `${Math.floor(value / large)} ${largeName}`
  return rest ? `${head} ${rest} ${smallName}` : head
}
