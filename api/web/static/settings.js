// What was asked for, in words.

import { byId, fill, pairs } from "./dom.js";
import * as format from "./format.js";

const words = (choice) => choice.replaceAll("_", "-");

/** The layer that chooses: the one that did in this selection, if there is one, or else was asked for; null if unknown. */
export const entryLayer = ({ jenga: { report, config } }, selection) =>
  selection?.entry_layer ?? report?.entry_layer ?? config.selection.entry_layer;

/** Show the job's settings, and by its newest selection what the server made of them. */
export function showSettings(job, selection) {
  fill(byId("config"), ...pairs(inWords(job, selection)));
  fill(byId("config-json"), JSON.stringify(job.jenga.config, null, 2));
}

/** Settings by name, in the order in which people ask for them. */
export function inWords(job, newestSelection) {
  const { config } = job.jenga;
  const { selection, lora, rope } = config;
  const layer = entryLayer(job, newestSelection);
  const entry = layer === null ? "three fifths of the layers" : `layer ${layer}`;
  const fixed = { preset: config.preset };
  if (config.enabled) {
    const share = selection.by === "threshold" ? "those over the layer's threshold" : format.percent(selection.keep_fraction);
    fixed.involved = `${share} of blocks of ${selection.block_tokens} tokens`;
    fixed.selection = selection.scope === "carried" ? `once, at ${entry}` : `in each layer, from ${entry} on`;
    const above = words(selection.unselected);
    fixed["other blocks"] = layer === 0 ? above : `${words(selection.below_entry)} below, ${above} from there on`;
    fixed.scores = selection.score;
  }
  return {
    ...fixed,
    context: `${format.count(config.context_length_tokens)} tokens`,
    recompute: config.recompute && config.recompute !== "none" ? config.recompute : null,
    LoRA: `rank ${lora.r}, alpha ${lora.alpha}`,
    "learning rate": config.learning_rate ?? "2e-4 × multiplier",
    rope: rope ? `${rope.type} × ${rope.factor}` : null,
    ...job.hyperparameters,
    "max steps": config.max_steps,
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
