// Loaded before a program (node --import): what a model would decide is decided for it. It calls
// a tool where there are some, then answers; where no format is asked for, in a form of words.

const ask = globalThis.fetch;

function decide(body) {
  const answered = body.messages.at(-1).role === 'tool';
  if (body.tools && !answered) return { tool_choice: 'required', parallel_tool_calls: false };
  if (body.response_format || body.regex) return {};
  return { regex: '(left|right) [0-9]{2}', ...(body.tools && { tool_choice: 'none' }) };
}

globalThis.fetch = (url, init) => {
  const body = init?.body ? JSON.parse(init.body) : {};
  if (body.messages === undefined) return ask(url, init);
  return ask(url, { ...init, body: JSON.stringify({ ...body, ...decide(body) }) });
};
