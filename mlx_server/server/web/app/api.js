/** The server's routes, as this page uses them. */

import { ROOT } from './header.js'
import { events } from './sse.js'

/** What the server, or the way to it, answered instead of a reply. */
export class ApiError extends Error {
  /**
   * @param {string} message The server's own words.
   * @param {number} status HTTP status; 0: there was no answer.
   * @param {{type?: string, param?: string, retryAfter?: number}} [more] `retryAfter`: seconds.
   */
  constructor(message, status, more = {}) {
    super(message)
    this.name = 'ApiError'
    this.status = status
    this.type = more.type
    this.param = more.param
    this.retryAfter = more.retryAfter
  }
}

/**
 * @param {string} path Below the pages' root.
 * @param {{key: string | null, body?: object, signal?: AbortSignal}} options
 * @returns {Promise<Response>} With a status below 300.
 * @throws {ApiError}
 * @throws {DOMException} AbortError: the signal was given.
 */
async function request(path, { key, body, signal }) {
  const headers = {}
  if (key) headers.Authorization = `Bearer ${key}`
  if (body) headers['Content-Type'] = 'application/json'
  let response
  try {
    const method = body ? 'POST' : 'GET'
    const text = body && JSON.stringify(body)
    response = await fetch(new URL(path, ROOT), { method, headers, body: text, signal })
  } catch (error) {
    if (error.name === 'AbortError') throw error
    throw new ApiError('The server cannot be reached. Is it still running?', 0)
  }
  if (!response.ok) throw await failure(response)
  return response
}

async function failure(response) {
  const text = await response.text().catch(() => '')
  const retryAfter = Number(response.headers.get('Retry-After')) || undefined
  try {
    const error = JSON.parse(text).error
    if (error?.message)
      return new ApiError(error.message, response.status, { ...error, retryAfter })
  } catch {
    // A proxy's page, perhaps; its status says enough.
  }
  const said = `${response.status} ${response.statusText}`.trim()
  return new ApiError(`The server answered ${said}.`, response.status, { retryAfter })
}

/**
 * @param {string | null} key
 * @returns {Promise<import('./types.js').ModelCard[]>}
 * @throws {ApiError}
 */
export async function models(key) {
  const response = await request('v1/models', { key })
  return (await response.json()).data
}

/**
 * @param {AbortSignal} [signal]
 * @returns {Promise<boolean>} Whether the model is loaded.
 * @throws {ApiError} For another reason than that it is not.
 */
export async function isReady(signal) {
  try {
    await request('health', { key: null, signal })
    return true
  } catch (error) {
    if (error.status === 503) return false
    throw error
  }
}

/**
 * The chunks of a streamed chat completion.
 *
 * @param {object} body
 * @param {string | null} key
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<any>}
 * @throws {ApiError} At the beginning, in the middle, or because the stream broke off.
 * @throws {DOMException} AbortError: the signal was given.
 */
export async function* streamChat(body, key, signal) {
  const response = await request('v1/chat/completions', { key, body, signal })
  try {
    for await (const data of events(response.body)) {
      if (data === '[DONE]') return
      const chunk = JSON.parse(data)
      if (chunk.error) throw new ApiError(chunk.error.message, chunk.error.code ?? 500, chunk.error)
      yield chunk
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === 'AbortError') throw error
    throw new ApiError(`The reply broke off: ${error.message}`, 0)
  }
  throw new ApiError('The reply broke off: the connection was closed before its end.', 0)
}
