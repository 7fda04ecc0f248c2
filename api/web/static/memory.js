// Memory of this job beside a dense step of the same model and batch, by kind, all bars on one scale.

import { byId, el, fill } from "./dom.js";
import * as format from "./format.js";

const KINDS = [
  ["states", "states_bytes", "Weights, gradients, optimizer state"],
  ["activations", "activation_bytes", "Saved by autograd for the backward pass"],
  ["predictor", "predictor_bytes", "Predictors of block scores"],
  ["other", "other_bytes", "Temporaries; on a CPU also the process itself"],
  ["peak", "peak_bytes", "Highest allocation of the phase"],
];

/** Show these measurements ([{phase, states_bytes, ...}]). */
export function showMemory(phases, ended) {
  const ours = phases.find(({ phase }) => phase === "finetune");
  const dense = phases.find(({ phase }) => phase === "dense_reference");
  fill(byId("memory-summary"), summarize(ours, dense, ended));
  byId("memory").hidden = !ours && !dense;
  if (!ours && !dense) return;
  const longest = Math.max(1, ...[ours, dense].flatMap((phase) => (phase ? KINDS.map(([, key]) => phase[key]) : [])));
  const rows = KINDS.map(([name, key, meaning]) =>
    el("tr", { class: name === "peak" ? "total" : null },
      el("th", { scope: "row", title: meaning }, name),
      bar("ours", ours?.[key], longest),
      bar("dense", dense?.[key], longest),
      el("td", { class: "number" }, name === "predictor" ? "" : format.comparison(ours?.[key], dense?.[key]))));
  fill(byId("memory").tBodies[0], ...rows);
  const device = (ours ?? dense).device;
  fill(byId("memory-note"), device.startsWith("cpu")
    ? "Measured on a CPU: peak is resident memory, and other includes the process itself."
    : `Measured on ${device}.`);
}

function bar(whose, value, longest) {
  if (value === undefined) return el("td", { class: "faint" }, "–");
  const line = el("span", { class: `bar ${whose}`, "aria-hidden": "true" });
  line.style.width = `${(100 * value) / longest}%`;
  return el("td", {}, el("span", { class: "amount" }, format.bytes(value)), line);
}

function summarize(ours, dense, ended) {
  if (!ours && ended) return "The job ended before its own memory was measured.";
  if (!ours) return dense ? "The dense reference is measured; this job's own steps come next." : "Measured once training begins.";
  const saved = `Activations saved for backward: ${format.bytes(ours.activation_bytes)}`;
  if (!dense) return `${saved}.`;
  const compared = format.comparison(ours.activation_bytes, dense.activation_bytes);
  return `${saved} instead of ${format.bytes(dense.activation_bytes)} (${compared}).`;
}
