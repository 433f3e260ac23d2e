/**
 * What the modules hand to one another. No code.
 *
 * @typedef {{t: string, p: number, top: [string, number][]}} Token A token's text, its
 *   log-probability, and the likeliest at its place with theirs.
 *
 * @typedef {{id: string, name: string, arguments: string}} Call
 *
 * @typedef {object} Stats
 * @property {number} [prompt] Tokens of the prompt.
 * @property {number} [cached] Those of them that were not computed anew.
 * @property {number} [completion] Tokens of the reply.
 * @property {boolean} [counted] They are counted by pieces here, as no usage came.
 * @property {number} [first] Milliseconds from asking to the first token.
 * @property {number} [speed] Tokens a second.
 *
 * @typedef {{message: string, status: number, field?: string}} Failure
 *
 * @typedef {object} Message
 * @property {string} id
 * @property {'user' | 'assistant' | 'tool'} role
 * @property {string} content
 * @property {string} [reasoning]
 * @property {number} [thought] Milliseconds of reasoning.
 * @property {Call[]} [calls]
 * @property {string} [callId] Of a tool's message: the call that it answers.
 * @property {Token[]} [tokens] Of the content, where log-probabilities were asked for.
 * @property {Token[]} [thoughtTokens] Of the reasoning.
 * @property {Stats} [stats]
 * @property {string} [finish] The server's reason, or "stopped".
 * @property {Failure} [error]
 * @property {string} [model] Who replied.
 *
 * @typedef {object} Conversation
 * @property {string} id
 * @property {string} title
 * @property {boolean} [named] The user gave the title.
 * @property {number} updated Milliseconds since 1970.
 * @property {Message[]} messages
 *
 * @typedef {Record<string, string>} Settings What is typed into each field of the panel, as it
 *   stands there; an empty one is absent.
 *
 * @typedef {{id: string, parent?: string, max_model_len?: number}} ModelCard
 */

export {}
