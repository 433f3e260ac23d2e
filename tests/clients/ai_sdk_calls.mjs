// What programs ask through Vercel's AI SDK and its provider for OpenAI-compatible servers.

import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { Output, embedMany, generateObject, generateText, isStepCount, streamText, tool } from 'ai';
import { z } from 'zod';
import { BASE, KEY, MODEL, busy, idle, tell, thrown } from './outcomes.mjs';

const provider = (fields) =>
  createOpenAICompatible({
    name: 'mlx',
    baseURL: BASE,
    apiKey: KEY,
    includeUsage: true,
    supportsStructuredOutputs: true,
    ...fields,
  });
const model = provider()(MODEL);
const prompt = 'Which is it?';
const FORCED = '(left|right) [0-9]{2}';
const regex = { mlx: { regex: FORCED } }; // goes into the body as it stands
const seeded = { model, prompt, seed: 3, temperature: 1, maxOutputTokens: 24, maxRetries: 0 };

async function text() {
  const reply = await generateText({ model, prompt, providerOptions: regex });
  const { inputTokens, outputTokens } = reply.usage;
  return { text: reply.text, reason: reply.finishReason, tokens: [inputTokens, outputTokens] };
}

/** A seeded reply as pieces, and whole. */
async function streamed() {
  const stream = streamText(seeded);
  let pieces = '';
  for await (const piece of stream.textStream) pieces += piece;
  const whole = await generateText(seeded);
  return {
    streamed: [pieces, await stream.finishReason, (await stream.usage).outputTokens],
    whole: [whole.text, whole.finishReason, whole.usage.outputTokens],
  };
}

const Step = z.object({ side: z.enum(['left', 'right']), metres: z.enum(['1', '2']) });

async function object() {
  const output = Output.object({ schema: Step });
  const choice = Output.choice({ options: ['a', 'b'] });
  return {
    object: (await generateObject({ model, prompt, schema: Step })).object,
    output: (await generateText({ model, prompt, output })).output,
    choice: (await generateText({ model, prompt, output: choice })).output,
  };
}

/** Steps: a call that must be, its result from here, and an answer that calls no more. */
function steps(kind) {
  const sent = [];
  const decided = provider({
    transformRequestBody: (body) => {
      sent.push(body.messages.map(({ role, content }) => [role, content === null]));
      return body.tool_choice === 'required' ? body : { ...body, regex: FORCED };
    },
  });
  const weather = tool({
    description: 'The weather in a city.',
    inputSchema: z.object({ city: z.enum(['Bern', 'Rome']) }),
    execute: ({ city }) => `sunny in ${city}`,
  });
  const run = kind({
    model: decided(MODEL),
    prompt,
    seed: 3,
    temperature: 1,
    maxOutputTokens: 200,
    tools: { weather },
    stopWhen: isStepCount(3),
    providerOptions: { mlx: { parallel_tool_calls: false } },
    prepareStep: ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? 'required' : 'none' }),
  });
  return { run, sent };
}

const outline = (found) =>
  found.map((step) => ({
    reason: step.finishReason,
    calls: step.toolCalls.map((call) => [call.toolName, call.input]),
    results: step.toolResults.map((result) => result.output),
  }));

async function tools() {
  const { run, sent } = steps(generateText);
  const reply = await run;
  return { answer: reply.text, steps: outline(reply.steps), sent };
}

async function streamedTools() {
  const { run, sent } = steps(streamText);
  const kinds = new Set();
  for await (const part of run.fullStream) kinds.add(part.type);
  return { answer: await run.text, steps: outline(await run.steps), sent, kinds: [...kinds] };
}

async function abort() {
  const controller = new AbortController();
  const stream = streamText({
    model,
    prompt,
    providerOptions: { mlx: { ignore_eos: true } },
    abortSignal: controller.signal,
    onError: () => {},
  });
  const found = { kinds: [] };
  for await (const part of stream.fullStream) {
    found.kinds.push(part.type);
    if (part.type !== 'text-delta' || controller.signal.aborted) continue;
    found.running = await busy();
    controller.abort();
  }
  return { ...found, last: found.kinds.at(-1), idle: await idle() };
}

async function vectors() {
  const embedder = provider().embeddingModel(MODEL);
  const values = ['left', 'right', 'left'];
  const { embeddings, usage } = await embedMany({ model: embedder, values });
  return { embeddings, tokens: usage.tokens };
}

/** A model that thinks: its reasoning apart from the answer, and sent back with the next turn. */
async function reasoning() {
  const thinking = provider({ baseURL: process.env.THINKING_URL });
  const options = { mlx: { regex: FORCED, max_thinking_tokens: 6 } };
  const asked = {
    ...seeded,
    model: thinking(MODEL),
    maxOutputTokens: 60,
    providerOptions: options,
  };
  const whole = await generateText(asked);
  const stream = streamText(asked);
  let thought = '';
  for await (const part of stream.fullStream) {
    if (part.type === 'reasoning-delta') thought += part.text;
  }
  const turns = [
    { role: 'user', content: prompt },
    ...whole.response.messages,
    { role: 'user', content: 'And then?' },
  ];
  let history;
  const again = provider({
    baseURL: process.env.THINKING_URL,
    transformRequestBody: (body) => {
      history = body.messages;
      return body;
    },
  });
  const { prompt: _, ...rest } = asked;
  const next = await generateText({ ...rest, model: again(MODEL), messages: turns });
  return {
    whole: [whole.reasoningText, whole.text],
    streamed: [thought, await stream.text],
    tokens: whole.usage.outputTokenDetails.reasoningTokens,
    sent: history[1].reasoning_content,
    next: next.text,
  };
}

async function errors() {
  const ask = (fields) => () => generateText({ ...seeded, ...fields });
  const wrong = {
    key: ask({ model: provider({ apiKey: 'wrong' })(MODEL) }),
    name: ask({ model: provider()('nobody/nothing') }),
    field: ask({ providerOptions: { mlx: { regex: '(' } } }),
    length: ask({ prompt: 'left right '.repeat(20_000) }),
  };
  const found = {};
  for (const [name, call] of Object.entries(wrong)) {
    const { kind, status, cause } = await thrown(call);
    const { message, isRetryable } = cause;
    found[name] = { kind, status, message, isRetryable, error: cause.data?.error };
  }
  return found;
}

await tell({ text, streamed, object, tools, streamedTools, abort, vectors, reasoning, errors });
