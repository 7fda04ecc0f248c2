// What was asked for, in words.

import { byId, fill, pairs } from "./dom.js";
import * as format from "./format.js";

// What `inWords` says of the config; `others` has the rest.
const SAID = ["preset", "enabled", "context_length_tokens", "recompute", "offload", "learning_rate", "max_steps", "lora.r", "lora.alpha", "rope",
  "rope.type", "rope.factor", ...["by", "keep_fraction", "block_tokens", "scope", "entry_layer", "unselected", "below_entry", "score"]
    .map((name) => `selection.${name}`)];
const SPARSE = ["selection.", "calibration.", "predictor."]; // what a dense job does not use

const words = (choice) => choice.replaceAll("_", "-");

/** The layer that chooses: the one that did in this selection, if there is one, or else was asked for; null if unknown. */
export const entryLayer = ({ jenga: { report, config } }, selection) =>
  selection?.entry_layer ?? report?.entry_layer ?? config.selection.entry_layer;

/** Show the job's settings, with the layer that chose in its newest selection. */
export function showSettings(job, selection) {
  fill(byId("config"), ...pairs(inWords(job, entryLayer(job, selection))));
  fill(byId("config-json"), JSON.stringify(job.jenga.config, null, 2));
}

/** Every setting that inWords leaves out, by its path in the config: "selection target fraction". */
export function others({ jenga: { config } }) {
  const used = (path) => config.enabled || !SPARSE.some((part) => path.startsWith(part));
  return Object.fromEntries(leaves(config).filter(([path]) => used(path) && !SAID.includes(path))
    .map(([path, value]) => [path.replaceAll(".", " "), value]));
}

/** [path, value] of each value in the tree; a list is one. */
const leaves = (tree, prefix = "") => Object.entries(tree).flatMap(([name, value]) =>
  value !== null && typeof value === "object" && !Array.isArray(value) ? leaves(value, `${prefix}${name}.`) : [[prefix + name, value]]);

/** Settings by name, in the order in which people ask for them; `layer` is the one that chooses, as far as it is known. */
export function inWords(job, layer = job.jenga.config.selection.entry_layer) {
  const { config } = job.jenga;
  const { selection, lora, rope } = config;
  const entry = layer === null ? "three fifths of the layers" : `layer ${layer}`;
  const fixed = { "base model": job.model, preset: config.preset };
  if (!config.enabled) fixed.involved = "every token";
  if (config.enabled) {
    const share = selection.by === "threshold" ? "those over the layer's threshold" : format.percent(selection.keep_fraction);
    const rounded = selection.by === "threshold" ? "" : ", rounded up per document";
    fixed.involved = `${share} of blocks of ${selection.block_tokens} tokens${rounded}`;
    fixed.selection = selection.scope === "carried" ? `once, at ${entry}` : `in each layer, from ${entry} on`;
    const above = words(selection.unselected);
    fixed["other blocks"] = layer === 0 ? above : `${words(selection.below_entry)} below, ${above} from there on`;
    fixed.scores = selection.score;
  }
  return {
    ...fixed,
    context: `${format.count(config.context_length_tokens)} tokens`,
    recompute: config.recompute && config.recompute !== "none" ? config.recompute : null,
    offload: config.offload ? "to the host's memory" : null,
    LoRA: `rank ${lora.r}, alpha ${lora.alpha}`,
    "learning rate": config.learning_rate ?? "2e-4 × multiplier",
    rope: rope ? `${rope.type} × ${rope.factor}` : null,
    ...job.hyperparameters,
    ...(config.max_steps && { n_epochs: null, "max steps": config.max_steps }),
    ...(config.learning_rate && { learning_rate_multiplier: null }),
    seed: job.seed,
    "training file": job.training_file,
    "held-out file": job.validation_file,
    suffix: job.user_provided_suffix,
    "GPUs": job.jenga.gpus,
    priority: job.jenga.priority || null,
    "out of memory": job.jenga.oom_policy,
    metadata: job.metadata && Object.entries(job.metadata).map((entry) => entry.join("=")).join(", "),
  };
}
