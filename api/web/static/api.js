// The JSON API of the server that these modules came from, below whatever path it is mounted. The key is in a cookie
// that this code cannot see; without a valid one the API answers 401 and the browser is sent to the login page.

const root = new URL("../", import.meta.url);

/** Absolute URL of a path below the server's root, e.g. url("v1/files"). */
export const url = (path) => new URL(path, root).href;

/** The server refused the request for good (4xx). `param` is the field that it refused, `status` the HTTP status. */
class Refused extends Error {
  constructor(message, { param = null, status = 400, code = null } = {}) {
    super(message);
    Object.assign(this, { param, status, code });
  }
}

/** No answer, or one that says "later" (network, 5xx, 429): worth another try. */
class Unreachable extends Error {}

/** True of errors to show to the reader; any other is a mistake in these modules. */
export const expected = (error) => error instanceof Refused || error instanceof Unreachable;

const known = new Map(); // path -> {etag, body} of the last answer that had an ETag

/** The answer to a GET. While the server says that nothing changed it is the very same object as last time. */
export async function get(path) {
  const last = known.get(path);
  const response = await send(path, { headers: last ? { "If-None-Match": last.etag } : {} });
  if (response.status === 304) return last.body;
  const body = await answer(response);
  const etag = response.headers.get("ETag");
  if (etag) known.set(path, { etag, body });
  return body;
}

/** POST with a JSON body, or with none. */
export const post = async (path, body, signal) => answer(await send(path, {
  method: "POST", signal,
  ...(body !== undefined && { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } }),
}));

export const remove = async (path) => answer(await send(path, { method: "DELETE" }));

/** All entries of a list, page after page, `most` at most. */
export async function all(path, most = 1000) {
  const found = [];
  for (let after = ""; found.length < most; ) {
    const page = await get(`${path}${path.includes("?") ? "&" : "?"}limit=${Math.min(most, 100)}${after}`);
    found.push(...page.data);
    if (!page.has_more || page.data.length === 0) break;
    after = `&after=${encodeURIComponent(page.data.at(-1).id)}`;
  }
  return found;
}

/** POST a form with a file, and tell `onShare` how much of it (0 to 1) has left. */
export function upload(path, form, onShare) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.open("POST", url(path));
    request.responseType = "json";
    request.upload.onprogress = ({ loaded, total }) => onShare(total ? loaded / total : 0);
    request.onerror = () => failed(new Unreachable("The connection broke while the file was sent. Try again."));
    request.onload = () => {
      if (request.status < 300) return done(request.response);
      if (request.status === 401) return toLogin();
      failed(problem(request.status, request.response));
    };
    request.send(form);
  });
}

async function send(path, { signal, ...options }) {
  const timeout = AbortSignal.timeout(30_000);
  try {
    return await fetch(url(path), {
      credentials: "same-origin", cache: "no-store", signal: signal ? AbortSignal.any([signal, timeout]) : timeout, ...options });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Unreachable(`The server does not answer (${error.message})`);
  }
}

async function answer(response) {
  let body;
  try {
    body = response.status === 204 ? null : await response.json();
  } catch (error) {
    throw new Unreachable(error.message);
  }
  if (response.ok) return body;
  if (response.status === 401) return toLogin();
  throw problem(response.status, body);
}

function problem(status, body) {
  const { message = `The server answered ${status}`, param, code } = body?.error ?? {};
  return status >= 500 || status === 429 ? new Unreachable(message) : new Refused(message, { param, status, code });
}

function toLogin() {
  const here = location.href.startsWith(root.href) ? location.href.slice(root.href.length).split("#")[0] : "";
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
