// What was asked for, what came of it, and the files to take away.

import { get, url } from "./api.js";
import { byId, el, fill } from "./dom.js";
import * as format from "./format.js";

const files = new Map();
const words = (choice) => choice.replaceAll("_", "-");

/** The job's settings, in the order in which people ask for them. */
export function showSettings(job) {
  const { config } = job.jenga;
  const { selection, lora, rope } = config;
  const entry = selection.entry_layer === null ? "the middle layer" : `layer ${selection.entry_layer}`;
  const fixed = { preset: config.preset };
  if (config.enabled) {
    const share = selection.by === "threshold" ? "those over the layer's threshold" : format.percent(selection.keep_fraction);
    fixed.involved = `${share} of blocks of ${selection.block_tokens} tokens`;
    fixed.selection = selection.scope === "carried" ? `once, at ${entry}` : `in each layer, from ${entry} on`;
    const above = words(selection.unselected);
    fixed["other blocks"] = selection.entry_layer === 0 ? above : `${words(selection.below_entry)} below, ${above} from there on`;
    fixed.scores = selection.score;
  }
  Object.assign(fixed, {
    context: `${format.count(config.context_length_tokens)} tokens`,
    LoRA: `rank ${lora.r}, alpha ${lora.alpha}`,
    "learning rate": config.learning_rate ?? "2e-4 × multiplier",
    rope: rope ? `${rope.type} × ${rope.factor}` : null,
    ...job.hyperparameters,
    "max steps": config.max_steps,
    seed: job.seed,
    "training file": job.training_file,
    "held-out file": job.validation_file,
  });
  fill(byId("config"), ...pairs(fixed));
  fill(byId("config-json"), JSON.stringify(config, null, 2));
}

/** Adapter, report and downloads; before the end, what will be here. */
export async function showResults(job) {
  const parts = [];
  const { report, state } = job.jenga;
  if (job.fine_tuned_model) parts.push(el("dl", { class: "pairs" }, ...pairs({ model: job.fine_tuned_model })));
  if (job.result_files.length) {
    const stored = await Promise.all(job.result_files.map(describe));
    parts.push(el("ul", { class: "files" }, ...stored.map((file) =>
      el("li", {}, el("a", { href: url(`v1/files/${file.id}/content`), download: file.filename }, file.filename),
        el("span", { class: "faint" }, ` ${format.bytes(file.bytes)}`)))));
  }
  if (report) parts.push(el("h3", {}, "Report"), el("dl", { class: "pairs" }, ...pairs(flatten(report))));
  if (parts.length === 0) {
    parts.push(el("p", { class: "faint" }, ["failed", "cancelled"].includes(state)
      ? "The job ended without an adapter."
      : "The adapter and the metrics can be downloaded here once the job has succeeded."));
  }
  if (state === "succeeded") {
    parts.push(el("details", {}, el("summary", {}, "Use the adapter"), el("pre", { tabindex: "0" },
      "# tar -xzf adapter.tar.gz\nfrom peft import PeftModel\nmodel = PeftModel.from_pretrained(base_model, \"adapter\")")));
  }
  fill(byId("results"), ...parts);
}

async function describe(id) {
  if (!files.has(id)) files.set(id, await get(`v1/files/${id}`));
  return files.get(id);
}

function pairs(object) {
  return Object.entries(object).filter(([, value]) => value !== null && value !== undefined)
    .flatMap(([name, value]) => [el("dt", {}, format.words(name)), el("dd", {}, String(value))]);
}

/** Nested objects become "outer inner"; long lists are drawn elsewhere and left out. */
function flatten(object, prefix = "") {
  const flat = {};
  for (const [name, value] of Object.entries(object)) {
    if (Array.isArray(value)) {
      if (value.every((item) => typeof item === "string") && value.length) flat[prefix + name] = value.join("; ");
    } else if (value !== null && typeof value === "object") Object.assign(flat, flatten(value, `${prefix}${name} `));
    else if (name.endsWith("_bytes")) flat[prefix + name.slice(0, -"_bytes".length)] = format.bytes(value);
    else flat[prefix + name] = typeof value === "number" ? format.figure(value) : value;
  }
  return flat;
}
