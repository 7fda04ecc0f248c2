// One job. Everything shown comes from a few GETs, repeated until the job has ended. Numbers that belong to a step are
// asked for once: later polls ask for the newest known step, which may have gained a held-out loss, and what follows it.

import { offerActions, showActions } from "./actions.js";
import { get, poll } from "./api.js";
import { announce, byId, el, ENDED, fill, progress, stateBadge } from "./dom.js";
import { followEvents } from "./events.js";
import { showFigures } from "./figures.js";
import * as format from "./format.js";
import { showLayers } from "./layers.js";
import { showLoss } from "./loss.js";
import { showMemory } from "./memory.js";
import { showResults } from "./results.js";
import { showSelection } from "./selection.js";
import { showSettings } from "./settings.js";

const STAGES = ["validate", "prepare", "calibrate", "train_predictors", "finetune", "evaluate", "publish"];
const path = `v1/fine_tuning/jobs/${byId("job").dataset.jobId}`;
const metrics = { name: "metrics", rows: [] };
const selections = { name: "selection", rows: [] };
const events = followEvents(path);
let attempt = null;
let shown = null;

offerActions(path, showHeader);
poll(load);

async function load() {
  // The job first: whatever it says has ended has already written all that the others will read.
  const job = await get(path);
  const ended = ENDED.includes(job.jenga.state);
  if (job.jenga.attempt !== attempt) metrics.rows = selections.rows = []; // a new attempt writes its steps anew
  attempt = job.jenga.attempt;
  const [memory] = await Promise.all([
    get(`${path}/memory`), events.refresh(ended), readSteps(metrics), readSteps(selections)]);
  showHeader(job);
  showActions(job);
  showFigures(job, metrics.rows, memory.data, selections.rows);
  showLoss(metrics.rows, ended);
  showMemory(memory.data, job);
  showSelection(selections.rows, job, ended);
  showLayers(job, events.known());
  showSettings(job, selections.rows.at(-1));
  await showResults(job, path);
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
  const { state, stage, step, queue, owner, started_at: started, stop_asked_at: stopAsked } = job.jenga;
  const ended = ENDED.includes(state);
  const now = Date.now() / 1000;
  const ran = format.ran(job);
  const at = ended ? format.stopped(job.jenga) : state !== "queued" && started && format.words(stage);
  fill(byId("state"), stateBadge(state), at ? ` ${at}` : "", !ended && stopAsked ? ", stopping" : "");
  fill(byId("facts"),
    [job.user_provided_suffix, job.model, owner ? `by ${owner}` : null, `created ${format.moment(job.created_at)}`,
      ran !== null ? `${ended ? "took" : "has run"} ${ran}` : ended && "never ran",
      !ended && job.estimated_finish > now ? `about ${format.duration(job.estimated_finish - now)} left` : null,
      attempt > 1 ? `attempt ${attempt}` : null].filter(Boolean).join(" · "));
  showStages(job, ended);
  const moves = state === "running" || (job.jenga.total_steps && (!ended || state === "failed"));
  fill(byId("progress"), ...(moves ? progress(job.jenga) : []));
  byId("waiting").hidden = !queue && state !== "paused";
  const then = step ? `it goes on from its checkpoint at step ${format.count(step)}` : "it begins anew: it has no checkpoint";
  if (state === "paused") fill(byId("waiting"), `Paused: it holds no device. Resume puts it back into the queue${started ? `, and ${then}` : ""}.`);
  else if (queue) fill(byId("waiting"), `${queue.position ? `No. ${queue.position} in the queue: ` : "Waiting: "}${queue.reason}`);
  byId("failure").hidden = !job.error?.message;
  if (job.error?.message) {
    fill(byId("failure"), el("strong", {}, `Failed in stage ${format.words(stage)} (${job.error.code}): `), job.error.message);
  }
  const standing = `${state}, ${format.words(stage)}`;
  if (shown !== null && shown !== standing) announce(`The job is now ${standing}`);
  shown = standing;
}

function showStages({ jenga: { state, stage, started_at: started } }, ended) {
  const at = STAGES.indexOf(stage);
  fill(byId("stages"), ...STAGES.map((name, index) => {
    const done = index < at || state === "succeeded";
    const here = index === at && !done && state !== "queued" && started !== null;
    const kind = done ? "done" : here ? (state === "failed" ? "failed" : ended ? "left" : "here") : "ahead";
    return el("li", { class: kind, "aria-current": kind === "here" ? "step" : null },
      format.words(name), el("span", { class: "unseen" }, { done: " done", failed: " failed", left: " left" }[kind] ?? ""));
  }));
}
