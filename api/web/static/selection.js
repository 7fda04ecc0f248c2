// Which blocks of tokens stayed involved in which layer, at one training step, and the share kept per layer.

import { axis, chart, colour } from "./chart.js";
import { byId, el, fill } from "./dom.js";
import * as format from "./format.js";

const slider = byId("selection-step");
let selections = [];
let blockTokens = null;

const draw = chart(byId("selection-chart"), (selection) => {
  const layers = selection.kept_fraction.length;
  const kept = keptByLayer(selection);
  const label = (layer, block) => `Layer ${layer}, block ${block}${tokens(block)}: ${kept[layer][block] ? "kept" : "eliminated"}`;
  const gap = selection.num_blocks <= 160 ? 1 : 0;
  return {
    traces: [
      { type: "heatmap", z: kept, zmin: 0, zmax: 1, showscale: false, xgap: gap, ygap: 1,
        colorscale: [[0, colour("gone")], [1, colour("ours")]],
        text: kept.map((row, layer) => row.map((_, block) => label(layer, block))), hovertemplate: "%{text}<extra></extra>" },
      { type: "bar", orientation: "h", x: selection.kept_fraction, xaxis: "x2", marker: { color: colour("ours") },
        width: 0.7, hovertemplate: "Layer %{y}: %{x:.0%} of tokens kept<extra></extra>" },
    ],
    layout: {
      height: Math.max(220, Math.min(90 + 11 * layers, 620)),
      margin: { l: 46, r: 24, t: 8, b: 44 },
      xaxis: axis("block", { domain: [0, 0.8], showgrid: false, tickformat: "d" }),
      xaxis2: axis("share kept", { domain: [0.84, 1], range: [0, 1], tickformat: ".0%", tickvals: [1], fixedrange: true }),
      yaxis: axis("layer", { showgrid: false, tickformat: "d" }),
    },
  };
});

/** Show these selections ([{step, num_blocks, kept_fraction, spans}], oldest first); stay at the newest unless moved. */
export function showSelection(data, job, ended) {
  const atNewest = Number(slider.value) >= selections.length - 1;
  selections = data;
  blockTokens = job.jenga.config?.selection?.block_tokens ?? null;
  byId("selection").hidden = data.length === 0;
  if (data.length === 0) {
    const dense = job.jenga.config?.enabled === false;
    const none = ended ? "The job ended before its first selection." : "Known once training begins.";
    fill(byId("selection-summary"), dense ? "A dense job: every layer keeps every block." : none);
    return;
  }
  slider.max = data.length - 1;
  if (atNewest) slider.value = data.length - 1;
  show();
}

slider.addEventListener("input", show);

function show() {
  const selection = selections[Number(slider.value)];
  const summary = summarize(selection);
  const at = `${selection.step}${selection === selections.at(-1) ? " (latest)" : ""}`;
  slider.setAttribute("aria-valuetext", `step ${at}`);
  slider.disabled = selections.length === 1;
  fill(byId("selection-at"), at);
  fill(byId("selection-summary"), summary);
  byId("selection-chart").setAttribute("role", "img");
  byId("selection-chart").setAttribute("aria-label", summary);
  draw(selection);
  fill(byId("selection-numbers").tBodies[0], ...selection.kept_fraction.map((share, layer) =>
    el("tr", {}, el("th", { scope: "row" }, String(layer)), el("td", { class: "number" }, format.percent(share)),
      el("td", {}, spanOf(selection, layer)?.blocks.join(" ") ?? "all"))));
}

const spanOf = ({ spans }, layer) => spans.find((span) => span.first_layer <= layer && layer <= span.last_layer);

/** One row of 0 and 1 per layer; a layer in no span keeps all blocks. */
function keptByLayer(selection) {
  return selection.kept_fraction.map((_, layer) => {
    const span = spanOf(selection, layer);
    const row = new Array(selection.num_blocks).fill(span ? 0 : 1);
    for (const block of span?.blocks ?? []) row[block] = 1;
    return row;
  });
}

function tokens(block) {
  return blockTokens ? ` (tokens ${block * blockTokens}–${(block + 1) * blockTokens - 1})` : "";
}

function summarize({ step, num_blocks: total, kept_fraction: shares, spans }) {
  const mean = shares.reduce((sum, share) => sum + share, 0) / shares.length;
  const average = `${format.percent(mean)} of tokens on average over all ${shares.length} layers`;
  if (spans.length !== 1) return `Step ${step}: kept ${average}.`;
  const [{ first_layer: first, last_layer: last, blocks }] = spans;
  const below = first > 0 ? ` Layers below ${first} keep all.` : "";
  return `Step ${step}: ${blocks.length} of ${total} blocks kept in layers ${first}–${last}.${below} That is ${average}.`;
}
