// The events of a job as they come: those there are, then a stream of new ones (server-sent events). A tab that nobody
// looks at keeps no stream open (a browser has six connections to a server for all its tabs), and catches up afterwards;
// where the stream does not get through, each poll asks for the newest instead.

import { get, url } from "./api.js";
import { byId, el, fill, moment } from "./dom.js";

const SHOWN = 400;

/** {refresh(ended), known()}: `refresh` brings the list up to date, `known` is all events so far, newest first. */
export function followEvents(path) {
  const known = new Map(); // id -> event
  let stream = null;
  let over = false;

  const newestFirst = () => [...known.values()].sort((left, right) => seq(right) - seq(left));
  const add = (events) => {
    const before = known.size;
    for (const event of events) known.set(event.id, event);
    if (known.size !== before) fill(byId("events"), ...newestFirst().slice(0, SHOWN).map(item));
  };

  function listen() {
    const [newest] = newestFirst();
    stream = new EventSource(url(`${path}/events?stream=true${newest ? `&after=${newest.id}` : ""}`));
    stream.onmessage = ({ data }) => add([JSON.parse(data)]);
  }

  function rest() {
    stream?.close();
    stream = null;
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) rest();
    else if (!over) listen();
  });

  async function refresh(ended) {
    over = ended;
    if (ended) rest();
    else if (stream?.readyState === EventSource.OPEN) return;
    const page = await get(`${path}/events?limit=${known.size ? 100 : SHOWN}`);
    add(page.data);
    if (!ended && !document.hidden && (stream === null || stream.readyState === EventSource.CLOSED)) listen();
  }
  return { refresh, known: newestFirst };
}

/** Events are numbered within a job, at the end of their id. */
const seq = (event) => Number(event.id.split("-").at(-1));

function item(event) {
  return el("li", { class: event.level }, moment(event.created_at),
    event.level === "info" ? "" : el("strong", {}, event.level === "warn" ? "warning" : event.level),
    el("span", {}, event.message));
}
