// The list of jobs: one row each, updated in place.

import { get, poll, url } from "./api.js";
import { announce, byId, el, fill, progress, stateBadge } from "./dom.js";
import * as format from "./format.js";

const ENDED = ["succeeded", "failed", "cancelled"];
const after = new URLSearchParams(location.search).get("after");
const path = "v1/fine_tuning/jobs?limit=50" + (after ? `&after=${encodeURIComponent(after)}` : "");
const body = byId("jobs").tBodies[0];
const rows = new Map();
const states = new Map();
const losses = new Map(); // job id -> {at: "attempt step", value}

for (const node of document.querySelectorAll(".base-url")) node.textContent = url("v1");
poll(load);

async function load() {
  const { data: jobs, has_more: more } = await get(path);
  await Promise.all(jobs.map(readLoss));
  byId("loading").hidden = true;
  byId("jobs").hidden = jobs.length === 0;
  byId("empty").hidden = jobs.length > 0 || Boolean(after);
  byId("pages").hidden = !more && !after;
  byId("newest").hidden = !after;
  byId("older").hidden = !more;
  if (more) byId("older").href = `?after=${encodeURIComponent(jobs.at(-1).id)}`;

  jobs.forEach((job, index) => {
    if (!rows.has(job.id)) rows.set(job.id, el("tr", { role: "row" }));
    const row = rows.get(job.id);
    fill(row, ...cells(job));
    if (body.rows[index] !== row) body.insertBefore(row, body.rows[index] ?? null);
  });
  while (body.rows.length > jobs.length) body.lastElementChild.remove();
  tellChanges(jobs);
  return true;
}

/** Read the newest training loss of a job that has moved on since. */
async function readLoss({ id, jenga: { attempt, step } }) {
  const at = `${attempt} ${step}`;
  if (step === 0 || losses.get(id)?.at === at) return;
  const { data } = await get(`v1/fine_tuning/jobs/${id}/metrics?after_step=${Math.max(-1, step - 2)}`);
  const known = data.filter((metric) => metric.train_loss !== null);
  if (known.length) losses.set(id, { at, value: known.at(-1).train_loss });
}

function cells(job) {
  const { state, stage } = job.jenga;
  const loss = losses.get(job.id)?.value;
  const ended = ENDED.includes(state);
  const cell = (name, attributes, ...children) =>
    el("td", { role: "cell", "data-label": name, ...attributes }, ...children);
  return [
    el("th", { role: "rowheader", scope: "row" },
      el("a", { href: `jobs/${job.id}`, class: "mono" }, job.id),
      el("span", { class: "model" }, job.model)),
    cell("State", {}, stateBadge(state)),
    cell("Stage", { class: ended || state === "queued" ? "faint" : null }, format.words(stage)),
    cell("Progress", { class: job.jenga.total_steps ? "progress" : "progress nothing" }, ...progress(job.jenga, ended)),
    cell("Loss", { class: loss !== undefined ? "number" : "number nothing" }, format.loss(loss)),
    cell("Created", { class: "number" },
      el("time", { datetime: new Date(1000 * job.created_at).toISOString() }, format.moment(job.created_at))),
  ];
}

function tellChanges(jobs) {
  const changed = jobs.filter(({ id, jenga }) => states.has(id) && states.get(id) !== jenga.state);
  if (changed.length) announce(changed.map(({ id, jenga }) => `Job ${id} is now ${jenga.state}`).join(". "));
  for (const { id, jenga } of jobs) states.set(id, jenga.state);
}
