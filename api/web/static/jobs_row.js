// One job as the cells of a row.

import { el, ENDED, moment, progress, stateBadge } from "./dom.js";
import * as format from "./format.js";

/** Pick, job, state, progress, loss, memory, owner, age. */
export function cells(job) {
  const { state, memory, owner } = job.jenga;
  const cell = (name, kind, known, ...children) =>
    el("td", { role: "cell", "data-label": name, class: `${kind} ${known ? "" : "nothing"}`.trim() }, ...children);
  const [newest, kind] = newestLoss(job);
  return [
    el("td", { role: "cell", class: "pick" }, el("input", { type: "checkbox", "aria-label": `Pick ${job.id} to compare` })),
    el("th", { role: "rowheader", scope: "row" },
      el("a", { href: `jobs/${job.id}`, class: "mono" }, job.id),
      el("span", { class: "sub" }, job.user_provided_suffix && el("b", {}, job.user_provided_suffix, " · "), job.model)),
    cell("State", "standing", true, stateBadge(state), el("span", { class: "sub", title: standing(job) }, standing(job))),
    cell("Progress", "progress", job.jenga.total_steps || timing(job), ...progress(job.jenga), el("span", { class: "sub" }, timing(job))),
    cell("Loss", "number loss", newest !== null,
      el("span", { class: "curve" }), el("span", { class: "newest" }, format.loss(newest)),
      el("span", { class: "sub" }, kind)),
    cell("Activations", "number", memory?.activation_bytes,
      memory?.activation_bytes ? format.bytes(memory.activation_bytes) : "–",
      el("span", { class: "sub" }, memory?.dense_activation_bytes
        ? `dense ${format.bytes(memory.dense_activation_bytes)}, ${format.comparison(memory.activation_bytes, memory.dense_activation_bytes)}`
        : "")),
    cell("Owner", "owner", owner, owner ?? "–"),
    cell("Created", "number", true, moment(job.created_at, format.brief)),
  ];
}

/** The loss to judge a job by: the held-out one once it has succeeded, else that of its newest step. */
export function newestLoss({ jenga: { state, loss } }) {
  if (loss && loss.held_out !== null && (state === "succeeded" || loss.train === null)) return [loss.held_out, "held-out"];
  return loss && loss.train !== null ? [loss.train, "train"] : [null, ""];
}

/** The stage, or why the job waits, why it failed, or where it was stopped. */
function standing({ jenga, error }) {
  const { state, stage, queue, started_at: started } = jenga;
  if (state === "failed") return `in ${format.words(stage)}${error?.code ? `, ${format.words(error.code)}` : ""}`;
  if (queue) return `${queue.position ? `No. ${queue.position}: ` : ""}${queue.reason}`;
  return format.stopped(jenga) ?? (ENDED.includes(state) || state === "queued" || started === null ? "" : format.words(stage));
}

function timing(job) {
  const { estimated_finish: finish, finished_at: finished, jenga: { state } } = job;
  const now = Date.now() / 1000;
  const ran = format.ran(job);
  if (finished) return ran === null ? "never ran" : `took ${ran}`;
  if (state === "running" && finish) return finish > now ? `${format.duration(finish - now)} left` : "a moment left";
  return "";
}
