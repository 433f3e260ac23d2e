/** The settings: what each field is called, how it is checked, and where it goes in a request. */

/** What the page itself decides, so further options may not. */
const OWN = ['messages', 'stream', 'stream_options']

const SAMPLING = 'Sampling'
const LENGTH = 'Length and stopping'
const FORMAT = 'Form of the reply'
const MORE = 'More'

/**
 * @typedef {object} Field
 * @property {string} name Its place in the settings, and in the body of a request.
 * @property {string} label
 * @property {string} group
 * @property {'number' | 'integer' | 'lines' | 'choice' | 'json' | 'text'} kind
 * @property {string} [hint]
 * @property {[number, number]} [range]
 * @property {[string, string][]} [choices] Values and what they are called.
 * @property {string} [example]
 */

/** @type {Field[]} In the order of the panel. */
export const FIELDS = [
  {
    name: 'system',
    label: 'System prompt',
    group: '',
    kind: 'text',
    hint: 'Said to the model before the conversation begins.',
  },
  number('temperature', 'Temperature', [0, 100], '0 always takes the likeliest token.'),
  number('top_p', 'Top p', [0, 1], 'The likeliest tokens that make up this share.'),
  integer('top_k', 'Top k', [-1, 2 ** 31 - 1], 'Only so many of the likeliest; 0: all.'),
  number('min_p', 'Min p', [0, 1], 'At least this part of the likeliest one’s probability.'),
  number('repetition_penalty', 'Repetition penalty', [0.01, 100], '1 is none.'),
  number('presence_penalty', 'Presence penalty', [-2, 2]),
  number('frequency_penalty', 'Frequency penalty', [-2, 2]),
  integer('seed', 'Seed', [-(2 ** 53) + 1, 2 ** 53 - 1], 'The same seed gives the same reply.'),
  {
    ...integer('max_tokens', 'Max tokens', [-1, 2 ** 31 - 1], '-1: until the context is full.'),
    group: LENGTH,
  },
  {
    name: 'stop',
    label: 'Stop strings',
    group: LENGTH,
    kind: 'lines',
    hint: 'One on each line; \\n stands for a new line.',
  },
  {
    name: 'response_format',
    label: 'Response format',
    group: FORMAT,
    kind: 'choice',
    choices: [
      ['', 'Text'],
      ['json_object', 'JSON'],
      ['json_schema', 'JSON that follows a schema'],
    ],
  },
  {
    name: 'schema',
    label: 'JSON schema',
    group: FORMAT,
    kind: 'json',
    example: '{"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}',
  },
  {
    name: 'tools',
    label: 'Tools',
    group: FORMAT,
    kind: 'json',
    hint: 'A JSON array. Calls are shown here, and you type in their results.',
    example:
      '[{"type": "function", "function": {"name": "get_weather", "parameters": ' +
      '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}]',
  },
  {
    name: 'more',
    label: 'Further options',
    group: MORE,
    kind: 'json',
    hint: 'A JSON object of fields that are sent with each request.',
    example: '{"grammar": "root ::= \\"yes\\" | \\"no\\""}',
  },
]

function number(name, label, range, hint) {
  return { name, label, group: SAMPLING, kind: 'number', range, hint }
}

function integer(name, label, range, hint) {
  return { ...number(name, label, range, hint), kind: 'integer' }
}

/**
 * @param {import('./types.js').Settings} settings
 * @param {Field} field
 * @returns {string | null} What is wrong with what stands in the field.
 */
export function problem(settings, field) {
  const text = (settings[field.name] ?? '').trim()
  if (field.name === 'schema') {
    if (settings.response_format !== 'json_schema') return null
    if (!text) return 'Enter a schema, or choose another response format.'
  }
  if (!text) return null
  if (field.kind === 'number' || field.kind === 'integer') return numberProblem(text, field)
  if (field.kind === 'json') return jsonProblem(text, field)
  return null
}

function numberProblem(text, { kind, range: [low, high] }) {
  const value = Number(text.replace(',', '.'))
  const what = kind === 'integer' ? 'a whole number' : 'a number'
  const right = kind === 'integer' ? Number.isInteger(value) : Number.isFinite(value)
  if (right && value >= low && value <= high) return null
  return high > 1000
    ? `Enter ${what} of at least ${low}, or nothing.`
    : `Enter ${what} between ${low} and ${high}, or nothing.`
}

function jsonProblem(text, { name }) {
  let value
  try {
    value = JSON.parse(text)
  } catch (error) {
    return `This is not JSON: ${error.message}`
  }
  const isObject = value !== null && typeof value === 'object' && !Array.isArray(value)
  if (name === 'schema') {
    return isObject || typeof value === 'boolean' ? null : 'A JSON schema is an object.'
  }
  if (name === 'tools') {
    return Array.isArray(value) ? null : 'Tools are an array: put [ and ] around it.'
  }
  if (!isObject) return 'Further options are an object: { "name": value }.'
  const own = OWN.find((key) => key in value)
  return own ? `"${own}" is the page’s own and cannot be set here.` : null
}

/**
 * @param {import('./types.js').Settings} settings
 * @returns {Record<string, string>} What is wrong, by the field's name.
 */
export function problems(settings) {
  const found = {}
  for (const field of FIELDS) {
    const words = problem(settings, field)
    if (words) found[field.name] = words
  }
  return found
}

/**
 * The fields of a request's body that the settings give.
 *
 * @param {import('./types.js').Settings} settings Without problems.
 * @returns {Record<string, any>}
 */
export function options(settings) {
  const body = {}
  for (const { name, kind } of FIELDS) {
    const text = (settings[name] ?? '').trim()
    if (!text) continue
    if (kind === 'number' || kind === 'integer') body[name] = Number(text.replace(',', '.'))
  }
  const stop = stopStrings(settings.stop ?? '')
  if (stop.length) body.stop = stop
  if (settings.response_format === 'json_object') body.response_format = { type: 'json_object' }
  if (settings.response_format === 'json_schema') {
    const schema = JSON.parse(settings.schema)
    body.response_format = { type: 'json_schema', json_schema: { name: 'reply', schema } }
  }
  if (settings.tools?.trim()) body.tools = JSON.parse(settings.tools)
  if (settings.more?.trim()) Object.assign(body, JSON.parse(settings.more))
  return body
}

function stopStrings(text) {
  const escapes = { n: '\n', t: '\t', '\\': '\\' }
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => line.replace(/\\([nt\\])/g, (_, letter) => escapes[letter]))
}
