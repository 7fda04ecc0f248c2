// The JSON API of the server that these modules came from, below whatever path it is mounted. The key is in a cookie
// that this code cannot see; without a valid one the API answers 401 and the browser is sent to the login page.

const root = new URL("../", import.meta.url);

/** Absolute URL of a path below the server's root, e.g. url("v1/files"). */
export const url = (path) => new URL(path, root).href;

/** The server refused the request for good (4xx). */
export class Refused extends Error {}

/** No answer, or one that says "later" (network, 5xx, 429): worth another try. */
export class Unreachable extends Error {}

export const get = (path) => request(path, { method: "GET" });
export const post = (path) => request(path, { method: "POST" });

async function request(path, options) {
  let response, body;
  try {
    response = await fetch(url(path), { ...options, credentials: "same-origin", signal: AbortSignal.timeout(15_000) });
    body = await response.json();
  } catch (error) {
    throw new Unreachable(error.message);
  }
  if (response.ok) return body;
  if (response.status === 401) return toLogin();
  const message = body?.error?.message ?? `The server answered ${response.status}`;
  throw response.status >= 500 || response.status === 429 ? new Unreachable(message) : new Refused(message);
}

function toLogin() {
  const here = location.href.startsWith(root.href) ? location.href.slice(root.href.length).split(/[?#]/)[0] : "";
  location.assign(url(here ? `login?next=${encodeURIComponent(here)}` : "login"));
  return new Promise(() => {}); // the page is being left; nothing more may happen on it
}

/**
 * Call `load` now and every few seconds, until it returns false. Waits while the tab is hidden, and after a slow answer
 * at least five times as long as it took. When the server cannot be reached it says so in #connection and keeps trying.
 */
export async function poll(load, seconds = 2.5) {
  const connection = document.getElementById("connection");
  const say = (text) => {
    if (connection.textContent !== text) connection.textContent = text;
  };
  for (let failures = 0; ; ) {
    const began = performance.now();
    try {
      if (!(await load())) return say("");
      failures = 0;
      say("");
    } catch (error) {
      if (error instanceof Refused) return say(error.message);
      if (!(error instanceof Unreachable)) throw error;
      failures += 1;
      say("Reconnecting…");
    }
    const took = performance.now() - began;
    await pause(failures ? Math.min(1000 * failures, 10_000) : Math.max(1000 * seconds, Math.min(5 * took, 60_000)));
    await visible();
  }
}

const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

async function visible() {
  while (document.hidden) {
    await new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
  }
}
