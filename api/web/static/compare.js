// Jobs side by side: their curves in one picture, what each measured, and the settings in which they differ.

import { all, get, poll } from "./api.js";
import { axis, chart, colour, counting, smooth } from "./chart.js";
import { byId, complain, el, ENDED, fill, stateBadge } from "./dom.js";
import * as format from "./format.js";
import { inWords, others } from "./settings.js";

const MOST = 6, MANY = 60; // jobs side by side; steps of a curve that is drawn smoothed, too
const COLOURS = ["ours", "held-out", "good", "predictor", "wait", "states"];
const ids = [...new Set(new URLSearchParams(location.search).getAll("job"))].slice(0, MOST);
const jobs = new Map(); // id -> {job, metrics, memory, shares}

const drawHeldOut = curves("heldout-chart", "valid_loss", "lines+markers");
const drawTrain = curves("train-chart", "train_loss", "lines");
let offered = null;
poll(load);

async function load() {
  offered ??= await all("v1/fine_tuning/jobs", 200);
  const missing = [];
  await Promise.all(ids.map(async (id) => {
    try {
      await read(id);
    } catch (error) {
      if (error.status !== 404) throw error;
      missing.push(id);
    }
  }));
  for (const id of missing) ids.splice(ids.indexOf(id), 1);
  complain(byId("problem"), missing.length ? `There is no job ${missing.join(", ")}, or it belongs to another team.` : null);
  show();
  return ids.some((id) => !ENDED.includes(jobs.get(id).job.jenga.state));
}

async function read(id) {
  const known = jobs.get(id);
  if (known && ENDED.includes(known.job.jenga.state)) return;
  const path = `v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
  const job = await get(path);
  const [metrics, memory, selection] = await Promise.all([
    get(`${path}/metrics?max_points=600`), get(`${path}/memory`), get(`${path}/selection?limit=1`)]);
  jobs.set(id, { job, metrics: metrics.data, memory: memory.data, shares: selection.data.at(-1)?.kept_fraction });
}

function show() {
  const shown = ids.map((id) => jobs.get(id)).filter(Boolean);
  fill(byId("chosen"), ...shown.map(({ job }, index) => {
    const line = el("span", { class: "key", "aria-hidden": "true" });
    line.style.background = colour(COLOURS[index]);
    return el("li", {}, line, el("a", { class: "mono", href: `jobs/${job.id}` }, job.id), stateBadge(job.jenga.state),
      el("button", { type: "button", class: "quiet", "data-remove": job.id, "aria-label": `Take ${job.id} out` }, "×"));
  }));
  const rest = offered.filter(({ id }) => !ids.includes(id));
  byId("add").hidden = rest.length === 0 || ids.length >= MOST;
  fill(byId("add"), el("option", { value: "" }, "Add a job…"), ...rest.map((job) =>
    el("option", { value: job.id }, `${job.id} · ${job.model} · ${job.jenga.state}`)));
  byId("empty").hidden = shown.length > 1;
  byId("comparison").hidden = shown.length < 2;
  if (shown.length < 2) return;
  drawHeldOut(shown);
  drawTrain(shown);
  table(byId("measured"), shown, shown.map(measured), true);
  table(byId("settings"), shown, shown.map(({ job }) => ({ ...inWords(job), ...others(job) })), byId("every").checked);
  complain(byId("other-windows"), otherWindows(shown.map(({ job }) => job)));
}

/** What keeps the held-out losses from being compared, if anything does. */
function otherWindows(compared) {
  const measuredOn = ({ model, validation_file: file, jenga: { config } }) =>
    ({ "base model": model, "held-out file": file, context: config.context_length_tokens, "eval windows": config.eval_windows });
  const [first, ...rest] = compared.filter((job) => job.validation_file).map(measuredOn);
  const different = Object.keys(first ?? {}).filter((name) => rest.some((other) => other[name] !== first[name]));
  return different.length ? `These losses are of different windows and do not compare: the jobs differ in ${different.join(", ")}.` : null;
}

function curves(id, key, mode) {
  const draw = chart(byId(id), (shown) => ({
    traces: shown.flatMap(({ job, metrics }, index) => {
      const known = metrics.filter((metric) => metric[key] !== null);
      const values = known.map((metric) => metric[key]);
      const many = known.length > MANY;
      const line = { name: job.id, x: known.map(({ step }) => step), y: values, mode, marker: { size: 6 }, cliponaxis: false,
        line: { color: colour(COLOURS[index]), width: many ? 1 : 2 }, hovertemplate: "%{y:.4f}" };
      if (!many) return [line];
      const smoothed = { ...line, y: smooth(values), line: { ...line.line, width: 2 }, hoverinfo: "skip", hovertemplate: null };
      return [{ ...line, opacity: 0.3 }, smoothed];
    }),
    layout: { height: 270, margin: { l: 52, r: 12, t: 8, b: 40 }, hovermode: "x unified",
      xaxis: axis("step", { rangemode: "tozero", showgrid: false,
        ...counting(Math.max(1, ...shown.map(({ metrics }) => metrics.at(-1)?.step ?? 1))) }),
      yaxis: axis("loss (nats/token)") },
  }));
  return (shown) => {
    byId(id).setAttribute("role", "img");
    byId(id).setAttribute("aria-label", shown.map(({ job, metrics }) => {
      const last = metrics.filter((metric) => metric[key] !== null).at(-1);
      return `${job.id}: ${last ? `${format.loss(last[key])} at step ${last.step}` : "none yet"}`;
    }).join("; "));
    draw(shown);
  };
}

/** What a job measured, by name. */
function measured({ job, metrics, memory, shares }) {
  const phase = (name) => memory.find((each) => each.phase === name);
  const [ours, dense] = [phase("finetune"), phase("dense_reference")];
  const heldOut = metrics.map((metric) => metric.valid_loss).filter((loss) => loss !== null);
  const trained = metrics.map((metric) => metric.train_loss).filter((loss) => loss !== null);
  const speeds = metrics.map((metric) => metric.tokens_per_second).filter(Boolean).sort((left, right) => left - right);
  return {
    "held-out loss, before": heldOut.length ? format.loss(heldOut[0]) : null,
    "held-out loss, now": heldOut.length > 1 ? format.loss(heldOut.at(-1)) : null,
    "train loss, now": trained.length ? format.loss(trained.at(-1)) : null,
    steps: job.jenga.total_steps ? `${job.jenga.step} of ${job.jenga.total_steps}` : null,
    activations: ours ? format.bytes(ours.activation_bytes) : null,
    "against dense": ours && dense ? format.comparison(ours.activation_bytes, dense.activation_bytes) : null,
    "peak memory": ours ? format.bytes(ours.peak_bytes) : null,
    "tokens involved": shares ? format.percent(shares.reduce((sum, share) => sum + share, 0) / shares.length) : job.jenga.config.enabled ? null : "all",
    "tokens/s, median": speeds.length ? format.count(Math.round(speeds[Math.floor(speeds.length / 2)])) : null,
    "took": job.finished_at ? format.ran(job) ?? "never ran" : null,
    model: job.fine_tuned_model,
  };
}

/** Names down, jobs across; rows in which jobs differ, or every one. What a job does not have at all differs from nothing. */
function table(node, shown, columns, every) {
  const names = [...new Set(columns.flatMap((column) => Object.keys(column)))];
  const text = (value) => (value === null || value === undefined ? "–" : String(value));
  const rows = names.map((name) => ({ name, values: columns.map((column) => text(column[name])) }))
    .map((row) => ({ ...row, differs: new Set(row.values.filter((_, index) => row.name in columns[index])).size > 1 }))
    .filter(({ differs, values }) => (differs || every) && values.some((value) => value !== "–"));
  fill(node, el("thead", {}, el("tr", {}, el("td", {}), ...shown.map(({ job }) => el("th", { scope: "col", class: "mono" }, job.id, el("span", { class: "sub" }, job.user_provided_suffix ?? job.model))))),
    el("tbody", {}, ...rows.map(({ name, values, differs }) => el("tr", { class: differs ? "differs" : null },
      el("th", { scope: "row" }, format.words(name)), ...values.map((value) => el("td", {}, value)))),
      !rows.length && el("tr", {}, el("td", { colspan: String(shown.length + 1), class: "faint" }, "They are all the same."))));
}

function go() {
  const query = ids.map((id) => `job=${encodeURIComponent(id)}`).join("&");
  location.assign(query ? `compare?${query}` : "compare");
}

byId("add").addEventListener("change", () => {
  if (byId("add").value) ids.push(byId("add").value);
  go();
});
byId("chosen").addEventListener("click", ({ target }) => {
  if (!target.dataset.remove) return;
  ids.splice(ids.indexOf(target.dataset.remove), 1);
  go();
});
byId("every").addEventListener("change", show);
byId("picker").addEventListener("submit", (event) => event.preventDefault());
