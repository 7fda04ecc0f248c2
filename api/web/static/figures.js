// The few numbers that a reader looks for first.

import { byId, el, ENDED, fill } from "./dom.js";
import * as format from "./format.js";

/** Held-out loss, activations against dense, peak, share of tokens, speed: those that are known. */
export function showFigures(job, metrics, memory, selections) {
  const ours = memory.find(({ phase }) => phase === "finetune");
  const dense = memory.find(({ phase }) => phase === "dense_reference");
  const heldOut = metrics.filter(({ valid_loss: loss }) => loss !== null);
  const train = metrics.filter(({ train_loss: loss }) => loss !== null);
  const newest = selections.at(-1);
  const speeds = metrics.map((metric) => metric.tokens_per_second).filter(Boolean);
  const figures = [
    heldOut.length > 1
      ? ["Held-out loss", `${format.loss(heldOut[0].valid_loss)} → ${format.loss(heldOut.at(-1).valid_loss)}`,
        `${change(heldOut[0].valid_loss, heldOut.at(-1).valid_loss)} since step ${heldOut[0].step}`]
      : ["Train loss", train.length ? format.loss(train.at(-1).train_loss) : null, "nats per token"],
    ["Activations", ours && format.bytes(ours.activation_bytes),
      ours && dense ? `${format.comparison(ours.activation_bytes, dense.activation_bytes)} than dense` : "saved for backward"],
    ["Peak memory", ours && format.bytes(ours.peak_bytes),
      ours && dense ? `${format.comparison(ours.peak_bytes, dense.peak_bytes)} than dense`.replace("the same than", "the same as") : "of the phase"],
    job.jenga.config.enabled
      ? ["Tokens involved", newest && format.percent(mean(newest.kept_fraction)), newest && share(newest)]
      : ["Tokens involved", ours && "all", "a dense job"],
    ["Throughput", speeds.length ? format.count(Math.round(median(speeds))) : null, "tokens per second, median"],
    ["Trained on", job.trained_tokens ? format.short(job.trained_tokens) : null,
      ENDED.includes(job.jenga.state) ? "tokens" : "tokens so far"],
  ].filter(([, value]) => value);
  byId("figures").hidden = figures.length === 0;
  fill(byId("figures"), ...figures.map(([name, value, note]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, el("strong", {}, value), el("span", { class: "faint" }, note)))));
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
/** What the share is of: one set of whole blocks, or a mean where layers differ. */
const share = ({ spans, num_blocks: total, kept_fraction: shares }) =>
  spans.length === 1 && spans[0].last_layer - spans[0].first_layer + 1 === shares.length
    ? `${spans[0].blocks.length} of ${total} blocks` : `mean of ${shares.length} layers`;
const median = (values) => [...values].sort((left, right) => left - right)[Math.floor(values.length / 2)];

function change(from, to) {
  const share = (to - from) / from;
  return `${share > 0 ? "+" : "−"}${Math.abs(100 * share).toFixed(1)}%`;
}
