/** A conversation and the settings, as the body of POST /v1/chat/completions. */

import { options } from './fields.js'

const ALTERNATIVES = 5

/**
 * @param {import('./types.js').Message[]} messages Up to where the reply begins, or, where it is
 *   continued, with its beginning.
 * @param {object} choices
 * @param {import('./types.js').Settings} choices.settings Without problems.
 * @param {string | null} choices.model null: the server's.
 * @param {boolean} choices.probabilities
 * @param {boolean} [choices.continues] The reply goes on with the last message.
 * @returns {object}
 */
export function chatBody(messages, { settings, model, probabilities, continues = false }) {
  const body = {
    messages: messages.filter(isSaid).map(wire),
    stream: true,
    stream_options: { include_usage: true },
    return_progress: true,
  }
  const system = settings.system?.trim()
  if (system) body.messages.unshift({ role: 'system', content: settings.system })
  if (model) body.model = model
  if (probabilities) Object.assign(body, { logprobs: true, top_logprobs: ALTERNATIVES })
  if (continues) Object.assign(body, { continue_final_message: true, add_generation_prompt: false })
  return { ...body, ...options(settings) }
}

/** A reply that failed before its first word is no part of the conversation. */
function isSaid(message) {
  return message.role !== 'assistant' || message.content || message.calls?.length
}

function wire(message) {
  if (message.role === 'tool')
    return { role: 'tool', tool_call_id: message.callId, content: message.content }
  const sent = { role: message.role, content: message.content }
  // Whether the model gets to see what it thought is for its template to say.
  if (message.reasoning) sent.reasoning_content = message.reasoning
  if (message.calls?.length) {
    sent.tool_calls = message.calls.map(({ id, name, arguments: text }) => ({
      id,
      type: 'function',
      function: { name, arguments: text },
    }))
  }
  return sent
}
