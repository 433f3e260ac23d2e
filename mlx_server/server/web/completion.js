// Talks to POST /completion from a web page or Node.
//
//   import { llama } from '/completion.js'
//   for await (const chunk of llama('Once upon a time')) document.write(chunk.data.content)
//
// `params` are the options of /completion, and `api_key`, `api_url` for a server elsewhere,
// `endpoint` (default "/completion"). `config` may hold `controller` (an AbortController; abort
// it to stop the generation), `api_url` and `endpoint`.

const DEFAULTS = { stream: true, n_predict: 500, temperature: 0.2, stop: ['</s>'] }

let settings = null // of the last reply that told them, or of /props

// An async generator over the events of the reply: { data, event, id }, where data is the parsed
// JSON with `content` (the next piece of text) and `stop`. Returns the whole text.
export async function* llama(prompt, params = {}, config = {}) {
  const controller = config.controller ?? new AbortController()
  const { api_key, api_url, endpoint, ...options } = params
  const response = await fetch(address(endpoint ?? config.endpoint ?? '/completion', config, api_url), {
    method: 'POST',
    body: JSON.stringify({ ...DEFAULTS, ...options, prompt }),
    headers: {
      Connection: 'keep-alive',
      'Content-Type': 'application/json',
      Accept: 'text/event-stream',
      ...authorization(api_key ?? config.api_key),
    },
    signal: controller.signal,
  })
  if (!response.ok) throw await failure(response)

  let content = ''
  let ended = false
  try {
    for await (const result of replies(response)) {
      if (result.error) throw problem(result.error)
      content += result.data.content ?? ''
      if (result.data.generation_settings) settings = result.data.generation_settings
      yield result
      if (result.data.stop) break
    }
    ended = true
  } catch (error) {
    if (error.name !== 'AbortError') throw error // whoever aborts knows it
  } finally {
    if (!ended) controller.abort() // the caller left the loop: the server may stop as well
  }
  return content
}

export default llama

// An EventTarget with the events "message" (detail: a chunk's data), "generation_settings",
// "timings", "error", and "done" (detail: { content }).
export const llamaEventTarget = (prompt, params = {}, config = {}) => {
  const target = new EventTarget()
  const tell = (type, detail) => target.dispatchEvent(new CustomEvent(type, { detail }))
  const run = async () => {
    let content = ''
    for await (const { data } of llama(prompt, params, config)) {
      content += data.content ?? ''
      tell('message', data)
      if (data.generation_settings) tell('generation_settings', data.generation_settings)
      if (data.timings) tell('timings', data.timings)
    }
    tell('done', { content })
  }
  // Later than now, so that the caller can add its listeners first.
  setTimeout(() => run().catch((error) => tell('error', error)), 0)
  return target
}

// The whole text, as a promise.
export const llamaPromise = async (prompt, params = {}, config = {}) => {
  let content = ''
  for await (const { data } of llama(prompt, params, config)) content += data.content ?? ''
  return content
}

// Calls `callback` with every chunk.
export const llamaComplete = async (params, controller, callback) => {
  for await (const chunk of llama(params.prompt, params, { controller })) callback(chunk)
}

// The settings of the model that is loaded, as GET /props tells them.
export const llamaModelInfo = async (config = {}) => {
  if (!settings) {
    const headers = authorization(config.api_key)
    const response = await fetch(address('/props', config), { headers })
    if (!response.ok) throw await failure(response)
    settings = (await response.json()).default_generation_settings
  }
  return settings
}

function address(path, config, api_url = config.api_url) {
  return (api_url ?? '').replace(/\/+$/, '') + path
}

function authorization(key) {
  return key ? { Authorization: `Bearer ${key}` } : {}
}

async function failure(response) {
  let error
  try {
    error = (await response.json()).error
  } catch {
    error = null // no JSON: the status has to do
  }
  return problem(error ?? `${response.status} ${response.statusText}`)
}

function problem(error) {
  const made = new Error(`llama: ${error.message ?? error}`)
  made.detail = error
  return made
}

// The reply's results: those of an event stream, or its one JSON body where stream is false.
async function* replies(response) {
  if (!(response.headers.get('content-type') ?? '').startsWith('text/event-stream')) {
    yield { data: await response.json() }
    return
  }
  for await (const event of events(lines(response.body))) {
    if (event.data === '[DONE]') return
    if (event.data !== undefined) event.data = JSON.parse(event.data)
    if (event.error !== undefined) event.error = parsed(event.error)
    else if (event.data?.error) event.error = event.data.error
    yield event
  }
}

function parsed(text) {
  try {
    return JSON.parse(text)
  } catch {
    return { message: text }
  }
}

// Lines of a byte stream, wherever its pieces are cut.
async function* lines(body) {
  const decoder = new TextDecoder()
  const reader = body.getReader()
  let rest = ''
  try {
    while (true) {
      const { value, done } = await reader.read()
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true })
      const found = rest.split('\n')
      rest = found.pop()
      for (const line of found) yield line.replace(/\r$/, '')
      if (done) return
    }
  } finally {
    reader.releaseLock()
  }
}

// Server-sent events as objects of their fields; comments are dropped.
async function* events(source) {
  let event = {}
  for await (const line of source) {
    if (line === '') {
      if (event.data !== undefined || event.error !== undefined) yield event
      event = {}
      continue
    }
    const [, name, value] = /^([^:]*)(?:: ?(.*))?$/.exec(line)
    if (name === 'data' && event.data !== undefined) event.data += '\n' + (value ?? '')
    else if (name) event[name] = value ?? ''
  }
}
