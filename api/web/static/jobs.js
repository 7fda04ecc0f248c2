// The list of jobs: found, filtered and sorted in the browser, updated in place, some of them picked for comparison.

import { get, poll, url } from "./api.js";
import { announce, byId, el, ENDED, fill } from "./dom.js";
import { drawCurve } from "./curves.js";
import { GROUPS, groupOf, matches, sorted } from "./jobs_order.js";
import { cells } from "./jobs_row.js";

const PAGE = 100, SHOWN = 500;
const query = new URLSearchParams(location.search);
const start = query.get("after");
const view = { text: query.get("q") ?? "", group: query.get("state") ?? "all", by: query.get("sort") ?? "created",
  up: query.get("order") === "asc" };
const body = byId("jobs").tBodies[0];
const rows = new Map(); // job id -> {row, drawn: the job as it was drawn}
const states = new Map();
const picked = new Set();
let jobs = [];
let older = false; // the server has jobs beyond those shown

for (const node of document.querySelectorAll(".base-url")) node.textContent = url("v1");
byId("search").value = view.text;
poll(load);

/** The newest jobs, as many pages as are shown at first, then as many as hold a job that may still change. */
async function load() {
  const last = new Map(jobs.map((job) => [job.id, job]));
  const found = new Map();
  let more = true;
  for (let after = start; more && found.size < SHOWN; ) {
    const limit = found.size ? SHOWN - PAGE : PAGE;
    const page = await get(`v1/fine_tuning/jobs?limit=${limit}${after ? `&after=${encodeURIComponent(after)}` : ""}`);
    for (const job of page.data) {
      found.set(job.id, job);
      last.delete(job.id);
    }
    more = page.has_more;
    after = page.data.at(-1)?.id;
    if (jobs.length === 0 && more) show([...found.values()]); // the newest, while the others are on their way
    if (last.size && [...last.values()].every((job) => ENDED.includes(job.jenga.state))) break;
    older = more;
  }
  for (const job of last.values()) if (found.size < SHOWN) found.set(job.id, job);
  show([...found.values()]);
  byId("empty").hidden = jobs.length > 0 || Boolean(start);
  byId("pages").hidden = !older && !start;
  byId("newest").hidden = !start;
  byId("older").hidden = !older || jobs.length === 0;
  if (older && jobs.length) byId("older").href = `?after=${encodeURIComponent(jobs.at(-1).id)}`;
  tellChanges();
  return true;
}

function show(known = jobs) {
  jobs = known;
  byId("loading").hidden = true;
  const shown = sorted(jobs.filter((job) => matches(job, view)), view);
  byId("tools").hidden = jobs.length === 0;
  byId("jobs").hidden = shown.length === 0;
  byId("nothing").hidden = shown.length > 0 || jobs.length === 0;
  fill(byId("count"), shown.length === jobs.length ? `${jobs.length} jobs` : `${shown.length} of ${jobs.length} jobs`);
  showGroups();
  for (const head of document.querySelectorAll("[data-sort]")) {
    const mine = head.dataset.sort === view.by;
    head.closest("th").setAttribute("aria-sort", mine ? (view.up ? "ascending" : "descending") : "none");
  }
  let at = body.firstElementChild;
  for (const job of shown) {
    const row = rowOf(job);
    if (row === at) at = at.nextElementSibling;
    else body.insertBefore(row, at);
  }
  while (at) {
    const next = at.nextElementSibling;
    at.remove();
    at = next;
  }
  showPicked();
}

function rowOf(job) {
  if (!rows.has(job.id)) rows.set(job.id, { row: el("tr", { role: "row", "data-job": job.id }), drawn: "" });
  const entry = rows.get(job.id);
  const drawn = JSON.stringify(job);
  if (entry.drawn !== drawn) {
    const ticked = entry.row.querySelector("input")?.checked ?? false;
    fill(entry.row, ...cells(job));
    entry.row.querySelector("input").checked = ticked;
    entry.drawn = drawn;
    drawCurve(entry.row, job);
  }
  return entry.row;
}

function showGroups() {
  const counts = Object.fromEntries(GROUPS.map((group) => [group, 0]));
  for (const job of jobs) counts[groupOf(job)] += 1;
  const chips = ["all", ...GROUPS].map((group) => {
    const input = el("input", { type: "radio", name: "state", value: group, id: `state-${group}`, checked: view.group === group });
    const count = group === "all" ? jobs.length : counts[group];
    return el("label", { class: "chip", for: `state-${group}` }, input, `${group} `, el("span", { class: "tally" }, String(count)));
  });
  fill(byId("states"), el("legend", { class: "unseen" }, "State"), ...chips);
}

function showPicked() {
  for (const id of picked) if (!jobs.some((job) => job.id === id)) picked.delete(id);
  const link = byId("compare");
  const enough = picked.size > 1;
  link.setAttribute("aria-disabled", String(!enough));
  fill(link, enough ? `Compare ${picked.size} jobs` : "Tick two jobs to compare");
  if (enough) link.href = `compare?${[...picked].map((id) => `job=${id}`).join("&")}`;
  else link.removeAttribute("href");
}

function remember() {
  const wanted = new URLSearchParams();
  if (start) wanted.set("after", start);
  if (view.text) wanted.set("q", view.text);
  if (view.group !== "all") wanted.set("state", view.group);
  if (view.by !== "created" || view.up) wanted.set("sort", view.by);
  if (view.up) wanted.set("order", "asc");
  history.replaceState(null, "", wanted.size ? `?${wanted}` : location.pathname);
  show();
}

byId("tools").addEventListener("submit", (event) => event.preventDefault());
byId("search").addEventListener("input", () => {
  view.text = byId("search").value;
  remember();
});
byId("states").addEventListener("change", (event) => {
  view.group = event.target.value;
  remember();
});
byId("clear").addEventListener("click", () => {
  byId("search").value = view.text = "";
  view.group = "all";
  byId("state-all").checked = true;
  remember();
});
byId("jobs").tHead.addEventListener("click", (event) => {
  const by = event.target.closest("[data-sort]")?.dataset.sort;
  if (!by) return;
  view.up = by === view.by ? !view.up : ["name", "state", "owner"].includes(by);
  view.by = by;
  remember();
});
body.addEventListener("change", (event) => {
  const { job } = event.target.closest("tr").dataset;
  if (event.target.checked) picked.add(job);
  else picked.delete(job);
  showPicked();
});

function tellChanges() {
  const changed = jobs.filter(({ id, jenga }) => states.has(id) && states.get(id) !== jenga.state);
  if (changed.length) announce(changed.map(({ id, jenga }) => `Job ${id} is now ${jenga.state}`).join(". "));
  for (const { id, jenga } of jobs) states.set(id, jenga.state);
}
