// What came of a job, and the files to take away.

import { get, url } from "./api.js";
import { byId, el, fill, moment, pairs } from "./dom.js";
import * as format from "./format.js";

const files = new Map();

/** Adapter, files, checkpoints and report; before the end, what will be here. */
export async function showResults(job, path) {
  const parts = [];
  const { report, state, step } = job.jenga;
  if (job.fine_tuned_model) parts.push(el("dl", { class: "pairs" }, ...pairs({ model: el("span", { class: "mono" }, job.fine_tuned_model) })));
  if (job.result_files.length) {
    const stored = await Promise.all(job.result_files.map(describe));
    parts.push(el("ul", { class: "files" }, ...stored.map((file) =>
      el("li", {}, el("a", { class: "button", href: url(`v1/files/${file.id}/content`), download: file.filename }, file.filename),
        el("span", { class: "faint" }, ` ${format.bytes(file.bytes)}`)))));
  }
  const { data: checkpoints } = step ? await get(`${path}/checkpoints?limit=10`) : { data: [] };
  if (report) {
    parts.push(el("dl", { class: "pairs" }, ...pairs(inShort(report))),
      el("details", {}, el("summary", {}, "The whole report"), el("dl", { class: "pairs" }, ...pairs(flatten(report)))));
  }
  if (checkpoints.length) {
    parts.push(el("h3", {}, "Checkpoints"), el("ul", { class: "files plain" }, ...checkpoints.map((checkpoint) =>
      el("li", {}, `step ${checkpoint.step_number} `, el("span", { class: "faint" }, moment(checkpoint.created_at))))));
  }
  if (parts.length === 0) {
    parts.push(el("p", { class: "faint" }, ["failed", "cancelled"].includes(state)
      ? "The job ended without an adapter. Clone it to try again with other settings."
      : "The adapter and the metrics can be downloaded here once the job has succeeded."));
  }
  if (state === "succeeded") {
    parts.push(el("details", { id: "use" }, el("summary", {}, "Use the adapter"),
      el("p", { class: "faint small" }, "Unpack it into a folder, and load it over the base model with peft:"),
      el("pre", { tabindex: "0" }, "mkdir adapter && tar -xzf adapter.tar.gz -C adapter"),
      el("pre", { tabindex: "0" }, "from peft import PeftModel\nmodel = PeftModel.from_pretrained(base_model, \"adapter\")")));
  }
  fill(byId("results"), ...parts);
}

async function describe(id) {
  if (!files.has(id)) files.set(id, await get(`v1/files/${id}`));
  return files.get(id);
}

/** What most readers want of a report. */
function inShort(report) {
  const { held_out_before: before, held_out_after: after } = report;
  return {
    "held-out loss": before && after ? `${format.loss(before.loss)} → ${format.loss(after.loss)} nats per token` : null,
    perplexity: before?.perplexity && after ? `${before.perplexity.toFixed(2)} → ${after.perplexity.toFixed(2)}` : null,
    scores: report.score,
    rows: report.training_rows ? format.count(report.training_rows) : null,
    warnings: report.warnings?.length ? report.warnings.join("; ") : null,
  };
}

/** Nested objects become "outer inner"; long lists are drawn elsewhere and left out. */
function flatten(object, prefix = "") {
  const flat = {};
  for (const [name, value] of Object.entries(object)) {
    if (Array.isArray(value)) {
      if (value.every((item) => typeof item === "string") && value.length) flat[prefix + name] = value.join("; ");
    } else if (value !== null && typeof value === "object") Object.assign(flat, flatten(value, `${prefix}${name} `));
    else if (name.endsWith("_bytes") && value !== null) flat[prefix + name.slice(0, -"_bytes".length)] = format.bytes(value);
    else flat[prefix + name] = typeof value === "number" ? format.figure(value) : value;
  }
  return flat;
}
