// Memory by phase and kind as stacked bars on one scale, the dense reference among them, and the saving in words.

import { bar, byId, el, fill } from "./dom.js";
import * as format from "./format.js";

const KINDS = ["states", "activations", "predictor", "other"];
const BYTES = { states: "states_bytes", activations: "activation_bytes", predictor: "predictor_bytes", other: "other_bytes" };
const NAMES = { dense_reference: "Dense LoRA, same batch", finetune: "This job" };

/** Show these measurements ([{phase, states_bytes, ...}]): this job's first, everywhere. */
export function showMemory(phases, job) {
  const ours = phases.find(({ phase }) => phase === "finetune");
  const dense = phases.find(({ phase }) => phase === "dense_reference");
  fill(byId("memory-summary"), ...summary(ours, dense, job));
  byId("memory").hidden = phases.length === 0;
  if (phases.length === 0) return;
  const saved = [ours, dense].filter(Boolean);
  const ordered = [...saved, ...phases.filter((phase) => !saved.includes(phase))];
  const most = Math.max(...saved.map((phase) => phase.activation_bytes), 1);
  fill(byId("memory-saved"), ...saved.map((phase) => el("div", {},
    label(phase.phase, format.bytes(phase.activation_bytes)),
    el("div", { class: "track" }, bar(phase.activation_bytes / most, phase === ours ? "ours" : "dense")))));
  const highest = Math.max(...ordered.map(total), 1);
  fill(byId("memory-phases"), ...ordered.map((phase) => el("div", {},
    label(phase.phase, `peak ${format.bytes(phase.peak_bytes)}`),
    el("div", { class: "track" }, ...KINDS.map((kind) => {
      const part = bar(phase[BYTES[kind]] / highest, kind);
      part.title = `${kind}: ${format.bytes(phase[BYTES[kind]])}`;
      return part;
    })))));
  fill(byId("memory-numbers").tBodies[0], ...ordered.map((phase) => el("tr", {},
    el("th", { scope: "row" }, nameOf(phase.phase)),
    ...[...KINDS.map((kind) => BYTES[kind]), "peak_bytes"].map((key) => el("td", { class: "number" }, format.bytes(phase[key]))))));
  const { device } = phases[0];
  fill(byId("memory-note"), device.startsWith("cpu")
    ? "Measured on a CPU: the peak is resident memory, and other includes the process itself."
    : `Measured on ${device}.`);
}

const nameOf = (phase) => NAMES[phase] ?? format.words(phase);
const total = (phase) => KINDS.reduce((sum, kind) => sum + phase[BYTES[kind]], 0);
const label = (phase, amount) => el("p", {}, el("span", {}, nameOf(phase)), el("span", { class: "amount" }, amount));

function summary(ours, dense, { finished_at: ended }) {
  if (!ours && ended) return ["The job ended before its own memory was measured."];
  if (!ours) return [dense ? "The dense step is measured; this job's own memory is told after its last step." : "Measured once training begins."];
  const saved = `Activations saved for backward: ${format.bytes(ours.activation_bytes)}`;
  if (!dense) return [`${saved}.`];
  const compared = format.comparison(ours.activation_bytes, dense.activation_bytes);
  return [`${saved} instead of ${format.bytes(dense.activation_bytes)} (`, el("strong", {}, compared), ")."];
}
