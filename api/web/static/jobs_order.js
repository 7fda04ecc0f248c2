// Which jobs of a list are shown, and in which order.

import { newestLoss } from "./jobs_row.js";

export const GROUPS = ["running", "waiting", "succeeded", "failed", "cancelled"];
const WAITING = ["queued", "pausing", "paused"];

/** The word under which people look for a job in this state. */
export function groupOf({ jenga: { state } }) {
  if (WAITING.includes(state)) return "waiting";
  return GROUPS.includes(state) ? state : "running";
}

/** Does the job hold every word of the search, and is it in the group? */
export function matches(job, { text, group }) {
  if (group !== "all" && groupOf(job) !== group) return false;
  const { state, stage, owner } = job.jenga;
  const about = [job.id, job.model, job.fine_tuned_model, job.user_provided_suffix, state, stage, owner,
    ...Object.entries(job.metadata ?? {}).flat()].join(" ").toLowerCase();
  return text.toLowerCase().split(/\s+/).every((word) => about.includes(word));
}

const KEYS = {
  name: (job) => `${job.model} ${job.id}`,
  state: (job) => GROUPS.indexOf(groupOf(job)) * 1000 + (job.jenga.queue?.position ?? 0),
  progress: ({ jenga }) => (jenga.total_steps ? jenga.step / jenga.total_steps : null),
  loss: (job) => newestLoss(job)[0],
  memory: ({ jenga }) => jenga.memory?.activation_bytes ?? null,
  owner: ({ jenga }) => jenga.owner ?? null,
  created: (job) => job.created_at,
};

/** Sorted by one key; what has no value comes last, whichever way. */
export function sorted(jobs, { by, up }) {
  const key = KEYS[by] ?? KEYS.created;
  const sign = up ? 1 : -1;
  return jobs.map((job) => [key(job), job]).sort(([left], [right]) => {
    if (left === null || right === null) return (left === null) - (right === null);
    return sign * (left < right ? -1 : left > right ? 1 : 0);
  }).map(([, job]) => job);
}
