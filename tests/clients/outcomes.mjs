// Runs what a program asks of the server, and tells what came of it as a line of JSON.
//
// The scripts beside this file run in a folder that has the packages of package.json; they get
// the server's address and a key in the environment.

export const BASE = process.env.OPENAI_BASE_URL;
export const KEY = process.env.OPENAI_API_KEY;
export const MODEL = process.env.MODEL;

/**
 * Print {name: {"value": what it returned} or {"error": its class and text}}, on a last line of
 * its own, since some libraries print, too.
 */
export async function tell(calls) {
  const told = {};
  for (const [name, call] of Object.entries(calls)) {
    try {
      told[name] = { value: await call() };
    } catch (error) {
      told[name] = { error: `${error?.name ?? error?.constructor?.name}: ${error?.stack}` };
    }
  }
  console.log(`\n${JSON.stringify(told)}`);
}

/** What the call throws, as its own properties; of an error that wraps another, the last one. */
export async function thrown(call) {
  let value;
  try {
    value = await call();
  } catch (error) {
    const cause = error.lastError ?? error;
    return { kind: cause.constructor.name, status: cause.status ?? cause.statusCode, cause };
  }
  throw new Error(`nothing was thrown, but ${JSON.stringify(value)} returned`);
}

/** How many rows of the server are busy. */
export async function busy(base = BASE) {
  const reply = await fetch(base.replace(/\/v1$/, '/slots'), {
    headers: { authorization: `Bearer ${KEY}` },
  });
  return (await reply.json()).filter((slot) => slot.is_processing).length;
}

/** Whether the server has no busy row within five seconds, long before a reply ends by itself. */
export async function idle(base = BASE) {
  const end = Date.now() + 5_000;
  while (Date.now() < end) {
    if ((await busy(base)) === 0) return true;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return false;
}
