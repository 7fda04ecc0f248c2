// What a job would need, asked of the server a moment after the last change: rows and steps, time, memory on each device,
// the longest context that fits, and what to change where it does not.

import { expected, post } from "./api.js";
import { bar, byId, el, fill, pairs } from "./dom.js";
import * as format from "./format.js";

const WAIT_MILLISECONDS = 400;
const REFUSED = "As it is, the job would be refused.";

export class Estimate {
  /** `request()` is the body of the job, or null; `context(body)` what it trains on; `onErrors` gets the rows that are wrong. */
  constructor(request, context, onErrors) {
    Object.assign(this, { request, context, onErrors, timer: null, running: null, refusal: null });
  }

  update() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.ask(), WAIT_MILLISECONDS);
  }

  async ask() {
    const body = this.request();
    const asked = JSON.stringify(body);
    if (!body) {
      this.asked = this.refusal = null;
      byId("estimate").hidden = true;
      return say("Choose a model and a training file to see memory, time and the longest context that fits.");
    }
    if (asked === this.asked) return;
    this.asked = asked;
    this.running?.abort();
    this.running = new AbortController();
    const { signal } = this.running;
    if (byId("estimate").hidden) say("Estimating…");
    byId("estimate").classList.add("stale");
    this.refusal = null;
    try {
      const answer = await post("v1/fine_tuning/estimates", body, signal);
      if (!signal.aborted) this.show(answer, body);
    } catch (error) {
      if (signal.aborted) return;
      if (!expected(error)) throw error;
      byId("estimate").hidden = true;
      this.refusal = error.message;
      this.sayRefusal();
    }
  }

  /** Why there is no estimate, unless the form's own box says the same. */
  sayRefusal() {
    if (this.refusal) say(this.refusal === byId("problem").textContent ? REFUSED : this.refusal, "warning");
  }

  show(answer, body) {
    this.onErrors(answer.errors.filter(({ row }) => row)); // row 0 is the job as a whole
    say(answer.valid ? "" : REFUSED, "warning");
    byId("estimate").hidden = false;
    byId("estimate").classList.remove("stale");
    fill(byId("estimate"), ...[
      ...answer.errors.map(({ row, message }) => el("p", { class: "warning" }, row ? `Row ${row}: ${message}` : message)).slice(0, 5),
      answer.advice && el("p", { class: "notice" }, answer.advice),
      ...devices(answer),
      ...settings(answer),
      el("h3", {}, "Data and time"),
      el("dl", { class: "pairs" }, ...pairs({
        rows: known(answer.rows), tokens: known(answer.tokens),
        "cut off": answer.tokens_cut ? `${format.count(answer.tokens_cut)} tokens past the context` : null,
        steps: known(answer.steps),
        time: answer.seconds ? range(answer.seconds, format.duration)
          : "not known yet: no job like it has run here",
      })),
      ...histogram(answer.length_histogram, this.context(body)),
    ]);
  }
}

const known = (value) => (value === null || value === undefined ? null : format.count(value));
const range = ({ low, expected: middle, high }, text) => `${text(middle)} (${text(low)} to ${text(high)})`;

function say(text, kind = "faint") {
  const line = byId("estimate-said");
  line.hidden = !text;
  line.className = kind;
  fill(line, text);
}

function devices({ devices: found, memory }) {
  const [asked] = memory;
  if (!found?.length) return [el("p", { class: "faint" }, "No device is known yet; a worker tells its devices when it starts.")];
  return [el("h3", {}, "Memory on each device"), el("div", { class: "bars" }, ...alike(found).map(({ device, count }) => {
    const over = !device.fits;
    const share = asked ? asked.expected_bytes / device.memory_bytes : 0;
    return el("div", { class: over ? "over" : null },
      el("p", {}, el("span", {}, count > 1 ? `${count} × ${device.name}` : device.name), el("span", { class: "amount" },
        asked ? `${format.bytes(asked.expected_bytes)} of ${format.bytes(device.memory_bytes)}` : "")),
      el("div", { class: "track" }, bar(share, over ? "full" : "ours"),
        asked && bar((asked.high_bytes - asked.expected_bytes) / device.memory_bytes, "margin")),
      el("p", { class: "small" }, el("strong", { class: over ? "bad" : "good" }, over ? "does not fit" : "fits"),
        el("span", { class: "faint" }, device.longest_context_tokens
          ? `longest context ${format.count(device.longest_context_tokens)} tokens` : "")));
  }))];
}

/** Devices of the same kind are one line: [{device, count}]. */
function alike(devices) {
  const groups = new Map();
  for (const device of devices) {
    const key = JSON.stringify({ ...device, id: null });
    groups.set(key, { device, count: (groups.get(key)?.count ?? 0) + 1 });
  }
  return [...groups.values()];
}

function settings({ memory }) {
  if (!memory?.length) return [];
  const most = Math.max(...memory.map((each) => each.high_bytes));
  return [el("h3", {}, "With other settings"), el("table", { class: "compact" },
    el("caption", { class: "unseen" }, "Memory by setting: expected, and from low to high"),
    el("tbody", {}, ...memory.map((each) => el("tr", {}, el("th", { scope: "row" }, each.setting),
      el("td", { class: "gauge" }, el("span", { class: "track" }, bar(each.expected_bytes / most, each === memory[0] ? "ours" : "dense"))),
      el("td", { class: "number" }, format.bytes(each.expected_bytes),
        el("span", { class: "sub" }, `${format.bytes(each.low_bytes)} to ${format.bytes(each.high_bytes)}`),
        each.host_bytes > 0 && el("span", { class: "sub" }, `and ${format.bytes(each.host_bytes)} of the host's`))))))];
}

function histogram(buckets, context) {
  if (!buckets?.length) return [];
  const most = Math.max(...buckets.map(({ rows }) => rows), 1);
  const isPast = ({ from_tokens: from }) => from > context;
  const words = buckets.map((each) => `${each.from_tokens} to ${each.to_tokens} tokens: ${each.rows} rows`).join("; ");
  return [el("h3", {}, "Length of rows, in tokens"), el("div", { class: "histogram", role: "img", "aria-label": words },
    ...buckets.map((each) => {
      const column = el("span", { class: isPast(each) ? "past" : null,
        title: `${format.count(each.from_tokens)}–${format.count(each.to_tokens)}: ${format.count(each.rows)} rows` });
      column.style.height = `${each.rows ? Math.max(4, (100 * each.rows) / most) : 0}%`;
      return column;
    })),
    el("p", { class: "ends faint small" }, el("span", {}, format.count(buckets[0].from_tokens)), el("span", {}, format.count(buckets.at(-1).to_tokens))),
    ...(buckets.some(isPast) ? [
      el("p", { class: "legend", "aria-hidden": "true" }, el("span", {}, el("span", { class: "key ours" }), `within the context of ${format.count(context)}`),
        " ", el("span", {}, el("span", { class: "key past" }), "longer")),
      el("p", { class: "faint small" }, "Longer texts are split into windows, not cut; longer chats and completions are cut."),
    ] : [])];
}
