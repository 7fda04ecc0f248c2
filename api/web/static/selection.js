// Which blocks of tokens were involved in which layer at one training step, what became of the others, and the share per
// layer.

import { axis, chart, colour, counting } from "./chart.js";
import { byId, el, fill } from "./dom.js";
import * as format from "./format.js";

const slider = byId("selection-step");
let selections = [];
let policy = {};

const ELIMINATED = 0, FORWARD_ONLY = 1, INVOLVED = 2;
const FATES = ["eliminated", "forward-only", "involved"];

const draw = chart(byId("selection-chart"), (selection) => {
  const layers = selection.kept_fraction.length;
  const fates = fatesByLayer(selection);
  const label = (layer, block) => `Layer ${layer}, block ${block}${tokens(block)}: ${FATES[fates[layer][block]]}`;
  const gap = selection.num_blocks <= 160 ? 1 : 0;
  return {
    traces: [
      { type: "heatmap", z: fates, zmin: ELIMINATED, zmax: INVOLVED, showscale: false, xgap: gap, ygap: 1,
        colorscale: [[0, colour("gone")], [0.5, colour("forward")], [1, colour("ours")]],
        text: fates.map((row, layer) => row.map((_, block) => label(layer, block))), hovertemplate: "%{text}<extra></extra>" },
      { type: "bar", orientation: "h", x: selection.kept_fraction, xaxis: "x2", marker: { color: colour("ours") },
        width: 0.7, hovertemplate: "Layer %{y}: %{x:.0%} of tokens involved<extra></extra>" },
    ],
    layout: {
      height: Math.max(220, Math.min(90 + 11 * layers, 620)),
      margin: { l: 46, r: 24, t: 8, b: 44 },
      xaxis: axis("block", { domain: [0, 0.8], showgrid: false, ...counting(selection.num_blocks) }),
      xaxis2: axis("share", { domain: [0.84, 1], range: [0, 1], tickformat: ".0%", tickvals: [1], fixedrange: true }),
      yaxis: axis("layer", { showgrid: false, ...counting(layers) }),
    },
  };
});

/** Show these selections ([{step, num_blocks, kept_fraction, spans}], oldest first); stay at the newest unless moved. */
export function showSelection(data, job, ended) {
  const atNewest = Number(slider.value) >= selections.length - 1;
  selections = data;
  policy = job.jenga.config?.selection ?? {};
  byId("selection").hidden = data.length === 0;
  if (data.length === 0) {
    const dense = job.jenga.config?.enabled === false;
    const none = ended ? "The job ended before its first selection." : "Known once training begins.";
    fill(byId("selection-summary"), dense ? "A dense job: every token is involved in every layer." : none);
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

const entryOf = (selection) => policy.entry_layer ?? Math.floor(selection.kept_fraction.length / 2);

/** What became of every block, a row per layer; a layer in no span involves all of them. */
function fatesByLayer(selection) {
  return selection.kept_fraction.map((_, layer) => {
    const span = spanOf(selection, layer);
    const others = layer < entryOf(selection) ? policy.below_entry : policy.unselected;
    const row = new Array(selection.num_blocks).fill(!span ? INVOLVED : others === "forward_only" ? FORWARD_ONLY : ELIMINATED);
    for (const block of span?.blocks ?? []) row[block] = INVOLVED;
    return row;
  });
}

function tokens(block) {
  const blockTokens = policy.block_tokens;
  return blockTokens ? ` (tokens ${block * blockTokens}–${(block + 1) * blockTokens - 1})` : "";
}

function summarize(selection) {
  const { step, num_blocks: total, kept_fraction: shares, spans } = selection;
  const mean = format.percent(shares.reduce((sum, share) => sum + share, 0) / shares.length);
  const average = `On average over all ${shares.length} layers, ${mean} of tokens are involved.`;
  if (spans.length !== 1) return `Step ${step}. ${average}`;
  const [{ first_layer: first, last_layer: last, blocks }] = spans;
  const chosen = `Step ${step}: ${blocks.length} of ${total} blocks`;
  if (first > 0) return `${chosen} are involved in layers ${first}–${last}, all of them below. ${average}`;
  return `${chosen}, ${mean} of tokens, are involved in every layer. They were chosen at layer ${entryOf(selection)}.`;
}
