// One job. Everything shown comes from five GETs, repeated until the job has ended.

import { get, poll, post, Refused, Unreachable } from "./api.js";
import { announce, byId, el, fill, progress, stateBadge } from "./dom.js";
import * as format from "./format.js";
import { showLoss } from "./loss.js";
import { showMemory } from "./memory.js";
import { showSelection } from "./selection.js";
import { showResults, showSettings } from "./settings.js";

const ENDED = ["succeeded", "failed", "cancelled"];
const path = `v1/fine_tuning/jobs/${byId("job").dataset.jobId}`;
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
  const [events, metrics, memory, selection] = await Promise.all(
    ["events?limit=100", "metrics", "memory", "selection"].map((part) => get(`${path}/${part}`)));
  showHeader(job);
  showLoss(metrics.data, ended);
  showMemory(memory.data, ended);
  showSelection(selection.data, job, ended);
  showEvents(events.data);
  showSettings(job);
  await showResults(job);
  return !ended;
}

function showHeader(job) {
  const { state, stage, attempt } = job.jenga;
  const ended = ENDED.includes(state);
  const now = job.finished_at ?? Date.now() / 1000;
  fill(byId("state"), stateBadge(state), ended || state === "queued" ? "" : ` ${format.words(stage)}`);
  fill(byId("facts"),
    [job.model, `created ${format.moment(job.created_at)}`,
      `${ended ? "took" : "age"} ${format.duration(now - job.created_at)}`,
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
