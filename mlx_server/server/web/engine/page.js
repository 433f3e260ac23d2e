/** The page of the running engine. */

import { announce } from '../app/dom.js'
import { mountHeader } from '../app/header.js'
import { Chart, SPECS } from './charts.js'
import { Poller } from './figures.js'
import { duration } from './format.js'
import { History } from './history.js'
import { showModels, showOutcomes, showRows, showTiles } from './view.js'

const history = new History()
const charts = SPECS.map((spec) => new Chart(spec, element('charts')))
let latest = null
let said = ''

function element(id) {
  return document.getElementById(id)
}

/** Write how things are; said aloud where that changes. */
function tell(state, text, aloud = text) {
  const line = element('status')
  line.dataset.state = state
  if (line.textContent !== text) line.textContent = text
  if (said !== aloud) announce(aloud)
  said = aloud
}

function show() {
  if (!latest || document.visibilityState !== 'visible') return
  const { version, device, uptime } = latest
  element('server').textContent = `mlx_server ${version} on ${device}, up ${duration(uptime)}`
  showTiles(latest, history.latest)
  showRows(latest.rows)
  showModels(latest.models)
  showOutcomes(latest.outcomes)
  for (const chart of charts) chart.show(history)
}

function onfigures(figures) {
  latest = figures
  const anew = history.add(figures)
  if (figures.status === 'ready') tell('live', 'Live')
  else tell('waiting', figures.status)
  if (anew) announce('The server has started anew.') // last, so that nothing takes its place
  show()
}

function onfailure(error, seconds) {
  if (seconds === null) {
    tell('lost', `${error.message.replace(/\.$/, '')}. The server asks for a key.`)
    setPaused(true, 'Give a key')
  } else {
    tell('lost', `${error.message} Trying again in ${duration(seconds)}.`, error.message)
  }
}

function setPaused(paused, label = paused ? 'Go on' : 'Pause') {
  element('pause').textContent = label
}

mountHeader(element('header'), { page: 'engine' })
const poller = new Poller({ onfigures, onfailure })
element('pause').addEventListener('click', () => {
  if (poller.paused) {
    setPaused(false)
    poller.resume()
  } else {
    setPaused(true)
    poller.pause()
    tell('waiting', 'Paused')
  }
})
document.addEventListener('visibilitychange', show)
poller.resume()
