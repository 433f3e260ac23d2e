/** The browser's storage: conversations, each under a key of its own, and the settings. */

const PREFIX = 'mlx_server.'
const CONVERSATION = `${PREFIX}conversation.`
const ROLES = ['user', 'assistant', 'tool']

/** The form of exported files; a later one reads this one too. */
export const FORMAT = 'mlx_server.conversations.1'

/**
 * @param {string} name
 * @param {any} fallback Where there is nothing, or nothing that can be read.
 * @returns {any}
 */
export function read(name, fallback) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name)) ?? fallback
  } catch {
    return fallback
  }
}

/**
 * @param {string} name
 * @param {any} value
 * @returns {boolean} Whether it is kept: storage may be full or switched off.
 */
export function write(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value))
    return true
  } catch {
    return false
  }
}

/** @returns {import('./types.js').Conversation[]} All that can be read, the latest first. */
export function readConversations() {
  const found = []
  for (const key of storedKeys()) {
    const conversation = checked(read(key.slice(PREFIX.length), null))
    if (conversation) found.push(conversation)
  }
  return found.sort((a, b) => b.updated - a.updated)
}

/**
 * Keep a conversation. Where storage is full, the tokens' probabilities of all conversations make
 * room first: they are the largest part, and the only one that can be asked for again.
 *
 * @param {import('./types.js').Conversation} conversation
 * @returns {boolean} Whether it is kept.
 */
export function writeConversation(conversation) {
  const name = `conversation.${conversation.id}`
  if (write(name, conversation)) return true
  for (const other of readConversations().reverse())
    write(`conversation.${other.id}`, withoutTokens(other))
  return write(name, conversation) || write(name, withoutTokens(conversation))
}

/** @param {string} id */
export function removeConversation(id) {
  try {
    localStorage.removeItem(CONVERSATION + id)
  } catch {
    // Nothing is kept where there is no storage.
  }
}

/**
 * @param {string | null} key Of a storage event; null: everything was deleted.
 * @returns {boolean} Whether another tab has changed conversations.
 */
export function isConversationKey(key) {
  return key === null || key.startsWith(CONVERSATION)
}

/**
 * @param {import('./types.js').Conversation[]} conversations
 * @returns {string} A file that `parseExport` reads.
 */
export function exportText(conversations) {
  return JSON.stringify({ format: FORMAT, conversations }, null, 1)
}

/**
 * @param {string} text
 * @returns {import('./types.js').Conversation[]}
 * @throws {Error} It is no such file; the message tells what is wrong with it.
 */
export function parseExport(text) {
  let data
  try {
    data = JSON.parse(text)
  } catch (error) {
    throw new Error(`The file is not JSON: ${error.message}`)
  }
  if (data?.format !== FORMAT || !Array.isArray(data.conversations))
    throw new Error(`The file has no "format": "${FORMAT}" with a list of conversations.`)
  return data.conversations.map((item, i) => {
    const conversation = checked(item)
    if (!conversation) throw new Error(`conversations[${i}] is not a conversation.`)
    return conversation
  })
}

function storedKeys() {
  try {
    return Object.keys(localStorage).filter((key) => key.startsWith(CONVERSATION))
  } catch {
    return []
  }
}

/** The conversation, where it has the form of one: storage and files can hold anything. */
function checked(item) {
  const right =
    item &&
    [item.id, item.title].every((value) => typeof value === 'string') &&
    Number.isFinite(item.updated) &&
    Array.isArray(item.messages) &&
    item.messages.every(isMessage)
  return right ? item : null
}

function isMessage(item) {
  return (
    item &&
    ROLES.includes(item.role) &&
    [item.id, item.content].every((value) => typeof value === 'string') &&
    ['reasoning', 'callId', 'finish', 'model'].every((name) => isOptional(item[name], 'string')) &&
    ['stats', 'error'].every((name) => isOptional(item[name], 'object')) &&
    isOptional(item.stats?.speed ?? undefined, 'number') &&
    listOf(item.calls, isCall) &&
    listOf(item.tokens, isToken) &&
    listOf(item.thoughtTokens, isToken)
  )
}

function isOptional(value, type) {
  return value === undefined || (value !== null && typeof value === type)
}

function listOf(value, test) {
  return value === undefined || (Array.isArray(value) && value.every(test))
}

function isCall(item) {
  return item && [item.id, item.name, item.arguments].every((value) => typeof value === 'string')
}

function isToken(item) {
  const isPair = (pair) => Array.isArray(pair) && typeof pair[0] === 'string'
  return item && typeof item.t === 'string' && Number.isFinite(item.p) && listOf(item.top, isPair)
}

function withoutTokens(conversation) {
  const messages = conversation.messages.map(({ tokens, thoughtTokens, ...rest }) => rest)
  return { ...conversation, messages }
}
