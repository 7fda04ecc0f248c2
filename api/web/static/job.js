// One job. Everything shown comes from five GETs, repeated until the job has ended. Numbers that belong to a step are
// asked for once: later polls ask for the newest known step, which may have gained a held-out loss, and what follows it.

import { get, poll, post, Refused, Unreachable } from "./api.js";
import { announce, byId, el, fill, progress, stateBadge } from "./dom.js";
import * as format from "./format.js";
import { showLoss } from "./loss.js";
import { showMemory } from "./memory.js";
import { showSelection } from "./selection.js";
import { showResults, showSettings } from "./settings.js";

const ENDED = ["succeeded", "failed", "cancelled"];
const path = `v1/fine_tuning/jobs/${byId("job").dataset.jobId}`;
const metrics = { name: "metrics", rows: [] };
const selections = { name: "selection", rows: [] };
let attempt = null;
let shown = null;

poll(load);
byId("cancel").addEventListener("click", () => byId("confirm").showModal());
byId("confirm").addEventListener("close", async () => {
  if (byId("confirm").returnValue === "cancel") await cancel();
});

async function load() {
  // The job first: whatever it says has ended has already written all that the other four will read.
  const job = await get(path);
  const ended = ENDED.includes(job.jenga.state);
  if (job.jenga.attempt !== attempt) metrics.rows = selections.rows = []; // a new attempt writes its steps anew
  attempt = job.jenga.attempt;
  const [events, memory] = await Promise.all([
    get(`${path}/events?limit=100`), get(`${path}/memory`), readSteps(metrics), readSteps(selections)]);
  showHeader(job);
  showLoss(metrics.rows, ended);
  showMemory(memory.data, ended);
  showSelection(selections.rows, job, ended);
  showEvents(events.data);
  showSettings(job);
  await showResults(job);
  return !ended;
}

async function readSteps(series) {
  for (let more = true; more; ) {
    const after = (series.rows.at(-1)?.step ?? 0) - 1;
    const { data, has_more } = await get(`${path}/${series.name}?after_step=${after}&limit=1000`);
    series.rows = [...series.rows.filter(({ step }) => step <= after), ...data];
    more = has_more;
  }
}

function showHeader(job) {
  const { state, stage } = job.jenga;
  const ended = ENDED.includes(state);
  const now = job.finished_at ?? Date.now() / 1000;
  fill(byId("state"), stateBadge(state), ended || state === "queued" ? "" : ` ${format.words(stage)}`);
  fill(byId("facts"),
    [job.model, `created ${format.moment(job.created_at)}`,
      `${ended ? "took" : "age"} ${format.duration(now - job.created_at)}`,
      job.estimated_finish > now ? `about ${format.duration(job.estimated_finish - now)} left` : null,
      attempt > 1 ? `attempt ${attempt}` : null].filter(Boolean).join(" · "));
  fill(byId("progress"), ...progress(job.jenga, ended));
  byId("cancel").hidden = ended;
  byId("cancel").disabled = state === "cancelling";
  byId("failure").hidden = !job.error?.message;
  if (job.error?.message) {
    fill(byId("failure"), el("strong", {}, `Failed in stage ${format.words(stage)} (${job.error.code}): `), job.error.message);
  }
  const standing = `${state}, ${format.words(stage)}`;
  if (shown !== null && shown !== standing) announce(`The job is now ${standing}`);
  shown = standing;
}

function showEvents(events) {
  fill(byId("events"), ...events.map((event) =>
    el("li", { class: event.level },
      el("time", { datetime: new Date(1000 * event.created_at).toISOString() }, format.moment(event.created_at)),
      event.level === "info" ? "" : el("strong", {}, event.level === "warn" ? "warning" : event.level),
      el("span", {}, event.message))));
}

async function cancel() {
  byId("cancel").disabled = true;
  try {
    showHeader(await post(`${path}/cancel`));
  } catch (error) {
    if (!(error instanceof Refused || error instanceof Unreachable)) throw error;
    byId("cancel").disabled = false;
    announce(`Not cancelled: ${error.message}`);
    fill(byId("failure"), `Not cancelled: ${error.message}`);
    byId("failure").hidden = false;
  }
}
