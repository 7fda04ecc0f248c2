// The layers that select: each one's threshold (Algorithm 1) and what its predictor recalls of the exact choice.

import { bar, byId, el, fill } from "./dom.js";
import * as format from "./format.js";

/** Numbers come from the report, or before the end from the events that tell them ({data: {by_layer}}, {data: {layers}}). */
export function showLayers(job, events) {
  const { report, config } = job.jenga;
  const told = (key) => events.find((event) => event.data?.[key] && typeof event.data[key] === "object")?.data[key];
  const thresholds = report?.thresholds ?? told("by_layer") ?? {};
  const recalls = report?.predictors?.layers ?? told("layers") ?? {};
  const layers = [...new Set([...Object.keys(thresholds), ...Object.keys(recalls)])].sort((left, right) => left - right);
  byId("layers").hidden = layers.length === 0;
  fill(byId("layers-summary"), summarize(layers, thresholds, recalls, config));
  const share = (value) => (value === undefined || value === null ? "–" : format.percent(value));
  fill(byId("layers").querySelector("tbody"), ...layers.map((layer) => {
    const { recall, precision, chance } = recalls[layer] ?? {};
    const threshold = thresholds[layer];
    return el("tr", {}, el("th", { scope: "row" }, layer),
      el("td", { class: "number" }, threshold === undefined ? "–" : threshold.toPrecision(3)),
      el("td", { class: "gauge" }, el("span", { class: "amount" }, share(recall)),
        recall === undefined ? "" : el("span", { class: "track" }, bar(recall))),
      el("td", { class: "number" }, share(precision)), el("td", { class: "number faint" }, share(chance)));
  }));
}

function summarize(layers, thresholds, recalls, { enabled, selection }) {
  if (!enabled) return "A dense job selects nothing.";
  const known = Object.values(recalls).map(({ recall }) => recall).filter((recall) => recall !== undefined);
  const parts = [];
  if (Object.keys(thresholds).length) parts.push(`${Object.keys(thresholds).length} layers have a threshold of their own.`);
  if (known.length) parts.push(`Predictors recall ${format.percent(Math.min(...known))} or more of the blocks that exact scores choose.`);
  if (parts.length) return parts.join(" ");
  if (selection.by === "threshold") return "Thresholds are known once the job has calibrated them.";
  if (selection.score === "predicted") return "Recall is known once predictors are trained.";
  const where = selection.scope === "carried" ? "at the layer that selects" : "in each layer that selects";
  return `No thresholds: the best ${format.percent(selection.keep_fraction)} of blocks are chosen ${where}.`;
}
