// What programs ask through the official Node client; it has its settings from the environment.

import OpenAI from 'openai';
import { zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { MODEL, busy, idle, tell, thrown } from './outcomes.mjs';

const client = new OpenAI({ maxRetries: 0 });
const messages = [{ role: 'user', content: 'Which is it?' }];
const forced = { model: MODEL, messages, regex: '(left|right) [0-9]{2}' };
const seeded = { model: MODEL, messages, seed: 3, temperature: 1, max_tokens: 24 };
const endless = { model: MODEL, messages, ignore_eos: true, max_tokens: -1, stream: true };

async function chat() {
  const reply = await client.chat.completions.create(forced);
  const { message, finish_reason } = reply.choices[0];
  const { role, content, refusal } = message;
  return { role, content, refusal, finish_reason, model: reply.model, usage: reply.usage };
}

/** A seeded reply as pieces, as the client's own sum of its events, and whole. */
async function streamed() {
  const parts = { ...seeded, stream: true, stream_options: { include_usage: true } };
  let text = '';
  let usage = null;
  const reasons = [];
  for await (const chunk of await client.chat.completions.create(parts)) {
    text += chunk.choices[0]?.delta.content ?? '';
    if (chunk.choices[0]?.finish_reason) reasons.push(chunk.choices[0].finish_reason);
    usage = chunk.usage ?? usage;
  }
  const summed = await client.chat.completions.stream(seeded).finalChatCompletion();
  const whole = await client.chat.completions.create(seeded);
  const outline = ({ choices: [choice] }) => [choice.message.content, choice.finish_reason];
  return {
    pieces: [text, reasons.join()],
    summed: outline(summed),
    whole: outline(whole),
    tokens: [usage.completion_tokens, whole.usage.completion_tokens],
  };
}

/** A function that the client runs itself, and the answer once it has the result. */
async function tools() {
  const asked = [];
  // Whether to call is the model's to decide: here it must at first, and then may not.
  const decided = (url, init) => {
    const body = JSON.parse(init.body);
    asked.push(body.messages.map((message) => message.role));
    const answer = body.messages.at(-1).role === 'tool';
    const choice = answer
      ? { tool_choice: 'none', regex: forced.regex }
      : { tool_choice: 'required' };
    return fetch(url, { ...init, body: JSON.stringify({ ...body, ...choice }) });
  };
  const calls = [];
  const weather = {
    name: 'weather',
    description: 'The weather in a city.',
    parameters: {
      type: 'object',
      properties: { city: { enum: ['Bern', 'Rome'] } },
      required: ['city'],
      additionalProperties: false,
    },
    parse: JSON.parse,
    function: ({ city }) => {
      calls.push(city);
      return `sunny in ${city}`;
    },
  };
  const outcomes = {};
  for (const stream of [false, true]) {
    calls.length = asked.length = 0;
    const runner = client.withOptions({ fetch: decided }).chat.completions.runTools({
      ...seeded,
      max_tokens: 80,
      parallel_tool_calls: false,
      tools: [{ type: 'function', function: weather }],
      stream,
    });
    const answer = await runner.finalContent();
    const results = runner.messages.filter((message) => message.role === 'tool');
    outcomes[stream ? 'streamed' : 'whole'] = {
      answer,
      cities: [...calls],
      results: results.map((message) => message.content),
      asked: [...asked],
    };
  }
  return outcomes;
}

async function parse() {
  const Step = z.object({
    side: z.enum(['left', 'right']),
    metres: z.union([z.literal(1), z.literal(2)]),
  });
  const fields = { model: MODEL, messages, response_format: zodResponseFormat(Step, 'step') };
  const reply = await client.chat.completions.parse(fields);
  return reply.choices[0].message.parsed;
}

/** The client asks for base64 unless it is told otherwise, and reads that into numbers. */
async function embeddings() {
  const sent = [];
  const watched = client.withOptions({
    fetch: (url, init) => {
      sent.push(JSON.parse(init.body).encoding_format);
      return fetch(url, init);
    },
  });
  const input = ['left', 'right', 'left'];
  const read = async (fields) => {
    const reply = await watched.embeddings.create({ model: MODEL, input, ...fields });
    return reply.data.map((item) => Array.from(item.embedding));
  };
  const vectors = [await read({}), await read({ encoding_format: 'float' })];
  return { sent, default: vectors[0], float: vectors[1] };
}

async function models() {
  const listed = [];
  for await (const model of client.models.list()) listed.push(model.id);
  return { listed, retrieved: (await client.models.retrieve(MODEL)).id };
}

/** Leaving a stream in the middle, in the two ways that the client has. */
async function abort() {
  const found = {};
  const aborted = await client.chat.completions.create(endless);
  for await (const chunk of aborted) {
    if (!chunk.choices[0]?.delta.content) continue;
    found.running = await busy();
    aborted.controller.abort();
  }
  found.aborted = await idle();
  for await (const chunk of await client.chat.completions.create(endless)) {
    if (chunk.choices[0]?.delta.content) break;
  }
  found.left = await idle();
  return found;
}

async function errors() {
  const ask = (fields, options) => () =>
    client.withOptions(options ?? {}).chat.completions.create({ ...forced, ...fields });
  const wrong = {
    key: ask({}, { apiKey: 'wrong' }),
    name: ask({ model: 'nobody/nothing' }),
    retrieve: () => client.models.retrieve('nobody/nothing'),
    field: ask({ temperature: 'hot' }),
    regex: ask({ regex: '(' }),
    length: ask({ messages: [{ role: 'user', content: 'left right '.repeat(20_000) }] }),
  };
  const found = {};
  for (const [name, call] of Object.entries(wrong)) {
    const { kind, status, cause } = await thrown(call);
    const { type, code, param, message } = cause;
    found[name] = { kind, status, type, code, param, message };
  }
  return found;
}

/** A server with one row and one place to wait: a third request has to come again. */
async function retries() {
  const options = { baseURL: process.env.NARROW_URL };
  const streams = await Promise.all(
    [1, 2].map(() => client.withOptions(options).chat.completions.create(endless)),
  );
  const statuses = [];
  const waits = [];
  const watched = async (url, init) => {
    const reply = await fetch(url, init);
    statuses.push(reply.status);
    waits.push(reply.headers.get('retry-after'));
    if (reply.status === 503) for (const stream of streams) stream.controller.abort();
    return reply;
  };
  const patient = client.withOptions({ ...options, maxRetries: 4, fetch: watched });
  const reply = await patient.chat.completions.create(forced);
  return { text: reply.choices[0].message.content, statuses, waits };
}

await tell({ chat, streamed, tools, parse, embeddings, models, abort, errors, retries });
