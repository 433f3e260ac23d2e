/** The chat page, put together. */

import { Chat } from './chat.js'
import { Composer } from './composer.js'
import { glyph, h, iconButton, toast } from './dom.js'
import { mountHeader } from './header.js'
import { ModelPicker } from './models.js'
import { Panels } from './panels.js'
import { SettingsPanel } from './settings.js'
import { bindShortcuts } from './shortcuts.js'
import { Sidebar } from './sidebar.js'
import { isConversationKey } from './storage.js'
import { Store } from './store.js'
import { Thread } from './thread.js'

const RELOAD_MODELS = 5000 // milliseconds, while the server cannot be asked

const byId = (id) => document.getElementById(id)

for (const button of document.querySelectorAll('[data-glyph]'))
  button.append(glyph(button.dataset.glyph))

const store = new Store()
const chat = new Chat(store)
const thread = new Thread(byId('scroller'), byId('messages'), store, chat, {
  // On a touch screen the keyboard would come up.
  onlost: () => matchMedia('(pointer: coarse)').matches || composer.focus(),
})
const composer = new Composer(byId('composer'), store, chat, { editLast: () => thread.editLast() })
const picker = new ModelPicker(byId('model'), store)
const panels = new Panels({
  side: { panel: byId('side'), button: byId('show-side') },
  settings: { panel: byId('settings'), button: byId('show-settings') },
})
const settings = new SettingsPanel(byId('settings-form'), store, { keyChanged: () => loadModels() })
const sidebar = new Sidebar(byId('side'), store, chat, {
  opened: () => {
    panels.closeOverlay()
    composer.focus()
  },
})

const probabilities = byId('probabilities')
const showProbabilities = () =>
  probabilities.setAttribute('aria-pressed', String(store.probabilities))
const switchProbabilities = () => {
  store.setProbabilities(!store.probabilities)
  showProbabilities()
  const told = store.open.messages.some(({ tokens }) => tokens)
  if (store.probabilities && !told)
    toast('From the next reply on, tokens show their probabilities.')
}
probabilities.addEventListener('click', switchProbabilities)
showProbabilities()

const lastReply = () => store.open.messages.findLast(({ role }) => role === 'assistant')
const help = bindShortcuts(
  {
    '/': ['Write a message', () => composer.focus()],
    n: ['New conversation', () => sidebar.create()],
    c: ['Conversations', () => panels.toggle('side')],
    s: ['Settings', () => panels.toggle('settings')],
    p: ['Probabilities of tokens', switchProbabilities],
    r: ['Regenerate the last reply', () => lastReply() && chat.regenerate(lastReply())],
    e: ['Edit your last message', () => thread.editLast()],
  },
  () => {
    if (chat.run()) chat.stop()
    else return panels.closeOverlay()
    return true
  },
)
const helpButton = iconButton('plus', 'Keyboard shortcuts', help)
helpButton.replaceChildren(h('span', { 'aria-hidden': 'true' }, '?'))
mountHeader(byId('header'), { page: 'chat', more: [helpButton] })

chat.addEventListener('invalid', () => {
  panels.open('settings')
  settings.showProblems()
})
chat.addEventListener('undo', ({ detail: { what, run } }) => toast(what, { label: 'Undo', run }))
chat.addEventListener('end', ({ detail: { error } }) => {
  settings.showKey()
  // Whoever answers next may have other models.
  if (error?.status === 0) loadModels()
})
store.addEventListener('full', () => {
  toast('The browser’s storage is full: this is not kept. Export or delete older conversations.')
})

let isStale = false // another tab has changed conversations
const catchUp = () => {
  // A reply that is being written here would lose its message.
  if (!isStale || chat.running.size) return
  isStale = false
  store.reload()
}
addEventListener('storage', ({ key }) => {
  isStale ||= isConversationKey(key)
  catchUp()
})
chat.addEventListener('end', catchUp)
addEventListener('pagehide', () => {
  store.flush()
  chat.stopAll()
})

let retry = 0
async function loadModels() {
  clearTimeout(retry)
  const trouble = byId('trouble')
  try {
    await picker.load()
    trouble.hidden = true
    if (!store.open.messages.length) thread.showAll({ toEnd: false })
  } catch (error) {
    trouble.textContent = `The models cannot be listed: ${error.message}`
    trouble.hidden = false
    if (error.status !== 401) retry = setTimeout(loadModels, RELOAD_MODELS)
  }
  settings.showKey()
}

composer.focus()
loadModels()
