/** A streamed reply, folded into its message. */

/**
 * Begin a reply, or the rest of one.
 *
 * @param {import('./types.js').Message} message Is written to by `add` and `end`.
 * @param {() => number} [clock] Milliseconds.
 */
export function replyInto(message, clock = () => performance.now()) {
  const before = message.stats?.completion ?? 0
  const begun = clock()
  let first = null
  let last = begun
  let pieces = 0
  let thinking = null
  delete message.error
  delete message.finish
  message.stats = {}

  /** Text that came counts as the reply's, so the times are known without any usage. */
  const arrived = () => {
    last = clock()
    first ??= last
    pieces += 1
  }

  const endThought = () => {
    if (thinking === null) return
    message.thought = (message.thought ?? 0) + last - thinking
    thinking = null
  }

  return {
    /** @param {any} chunk A chat.completion.chunk. */
    add(chunk) {
      if (chunk.model) message.model = chunk.model
      // Further options may ask for more choices than are shown.
      const choice = chunk.choices?.find(({ index }) => !index)
      const delta = choice?.delta ?? {}
      if (delta.reasoning_content) {
        arrived()
        thinking ??= last
        message.reasoning = (message.reasoning ?? '') + delta.reasoning_content
      }
      if (delta.content) {
        arrived()
        endThought()
        message.content += delta.content
      }
      if (delta.tool_calls) {
        arrived()
        endThought()
        delta.tool_calls.forEach((piece) => addCall(message, piece))
      }
      if (choice?.logprobs?.content) addTokens(message, choice.logprobs.content, delta)
      if (choice?.finish_reason) message.finish = choice.finish_reason
      if (chunk.usage) addUsage(message.stats, chunk.usage)
      if (chunk.timings?.predicted_per_second)
        message.stats.speed = chunk.timings.predicted_per_second
    },

    /** @param {string} [reason] Why it ended, where the server did not say: "stopped". */
    end(reason) {
      endThought()
      if (reason) message.finish = reason
      const { stats } = message
      if (first !== null) stats.first = first - begun
      if (stats.completion === undefined) {
        stats.completion = pieces
        stats.counted = true
      }
      // The first token's time is the prompt's.
      if (stats.speed === undefined && last > (first ?? last))
        stats.speed = (1000 * (stats.completion - 1)) / (last - first)
      stats.completion += before
    },
  }
}

function addCall(message, piece) {
  message.calls ??= []
  while (message.calls.length <= piece.index)
    message.calls.push({ id: '', name: '', arguments: '' })
  const call = message.calls[piece.index]
  if (piece.id) call.id = piece.id
  if (piece.function?.name) call.name += piece.function.name
  if (piece.function?.arguments) call.arguments += piece.function.arguments
}

function addTokens(message, content, delta) {
  const place = delta.reasoning_content ? 'thoughtTokens' : 'tokens'
  // Further options can ask for other forms, which are not shown.
  const known = content.filter(({ token, logprob }) => token !== undefined && isFinite(logprob))
  if (!known.length) return
  const tokens = (message[place] ??= [])
  for (const token of known) {
    const top = (token.top_logprobs ?? []).map((other) => [spelled(other), round(other.logprob)])
    tokens.push({ t: spelled(token), p: round(token.logprob), top })
  }
}

/** A token's text; its bytes where it is no whole character. */
function spelled(token) {
  if (!token.token.includes('\ufffd') || !token.bytes) return token.token
  return token.bytes.map((byte) => `\\x${byte.toString(16).padStart(2, '0')}`).join('')
}

/** Four places are more than is shown, and half as long in the browser's storage. */
function round(logprob) {
  return Math.round(logprob * 1e4) / 1e4
}

function addUsage(stats, usage) {
  stats.prompt = usage.prompt_tokens
  stats.completion = usage.completion_tokens
  stats.cached = usage.prompt_tokens_details?.cached_tokens ?? 0
}
