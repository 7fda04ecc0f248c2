// Which blocks of tokens were involved in which layer at one training step, what became of the others, the share per layer,
// and below it how the choice moved from step to step.

import { axis, chart, colour, counting } from "./chart.js";
import { byId, el, fill } from "./dom.js";
import * as format from "./format.js";
import { entryLayer } from "./settings.js";

const ELIMINATED = 0, FORWARD_ONLY = 1, INVOLVED = 2;
const FATES = ["eliminated", "forward-only", "involved"];
const FRAME_MILLISECONDS = 350;

const slider = byId("selection-step");
const play = byId("selection-play");
let selections = [];
let job = null;
let policy = {};
let playing = null;

const draw = chart(byId("selection-chart"), (selection) => {
  const layers = selection.kept_fraction.length;
  const fates = fatesByLayer(selection);
  const label = (layer, block) => `Layer ${layer}, block ${block}${tokens(block)}: ${FATES[fates[layer][block]]}`;
  const blocks = Math.max(...selections.map((each) => each.num_blocks));
  const { clientWidth: width } = byId("selection-chart");
  const gap = width / blocks > 5.5 ? 1 : 0;
  const upper = Math.max(150, Math.min(10 * layers, 420));
  const lower = Math.max(60, Math.min(12 * selections.length, 170));
  const share = lower / (upper + lower + 46);
  const at = selections.indexOf(selection);
  return {
    traces: [
      { type: "heatmap", z: fates, zmin: ELIMINATED, zmax: INVOLVED, showscale: false, xgap: gap, ygap: 1,
        colorscale: [[0, colour("gone")], [0.5, colour("forward")], [1, colour("ours")]],
        text: fates.map((row, layer) => row.map((_, block) => label(layer, block))), hovertemplate: "%{text}<extra></extra>" },
      { type: "bar", orientation: "h", x: selection.kept_fraction, xaxis: "x2", marker: { color: colour("ours") },
        width: 0.7, hovertemplate: "Layer %{y}: %{x:.0%} of tokens involved<extra></extra>" },
      { type: "heatmap", z: selections.map((each) => layersByBlock(each, blocks)), zmin: 0, zmax: 1, showscale: false, xgap: gap, yaxis: "y2",
        colorscale: [[0, colour("gone")], [1, colour("ours")]], hoverongaps: false,
        customdata: selections.map((each) => new Array(blocks).fill(each.step)),
        hovertemplate: "Step %{customdata}, block %{x}: involved in %{z:.0%} of layers<extra></extra>" },
    ],
    layout: {
      height: upper + lower + 110,
      margin: { l: 50, r: 24, t: 6, b: 50 },
      xaxis: axis("block", { domain: [0, 0.82], showgrid: false, anchor: "y2", ...counting(blocks) }),
      xaxis2: axis("", { domain: [0.85, 1], range: [0, 1], tickformat: ".0%", tickangle: 0, tickvals: width > 700 ? [0, 0.5, 1] : [1], fixedrange: true, anchor: "y" }),
      yaxis: axis("layer", { domain: [share + 0.09, 1], showgrid: false, ...counting(layers) }),
      yaxis2: axis("step", { domain: [0, share], showgrid: false, tickvals: stepTicks(), ticktext: stepTicks().map((index) => String(selections[index].step)) }),
      shapes: [{ type: "rect", xref: "x", yref: "y2", x0: -0.5, x1: blocks - 0.5, y0: at - 0.5, y1: at + 0.5,
        line: { color: colour("held-out"), width: 1.5 } }],
    },
  };
});

/** Show these selections ([{step, entry_layer, num_blocks, kept_fraction, spans}], oldest first); stay at the newest unless moved. */
export function showSelection(data, ofJob, ended) {
  const atNewest = Number(slider.value) >= selections.length - 1;
  selections = data;
  job = ofJob;
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

slider.addEventListener("input", () => {
  stopPlaying();
  show();
});
play.addEventListener("click", () => {
  if (playing) return stopPlaying();
  if (Number(slider.value) >= selections.length - 1) slider.value = 0;
  playing = setInterval(() => {
    slider.value = Number(slider.value) + 1;
    show();
    if (Number(slider.value) >= selections.length - 1) stopPlaying();
  }, FRAME_MILLISECONDS);
  showPlaying();
  show();
});

function stopPlaying() {
  clearInterval(playing);
  playing = null;
  showPlaying();
}

function showPlaying() {
  play.setAttribute("aria-pressed", String(playing !== null));
  fill(play, playing ? "Stop" : "Play");
}

/** A click on a step of the lower map shows that step. */
function listenOnce() {
  const node = byId("selection-chart");
  if (node.dataset.listens) return;
  node.dataset.listens = "yes";
  node.on("plotly_click", ({ points: [point] }) => {
    if (point.curveNumber !== 2) return;
    stopPlaying();
    slider.value = point.y;
    show();
  });
}

function show() {
  const selection = selections[Number(slider.value)];
  const summary = summarize(selection);
  const at = `${selection.step}${selection === selections.at(-1) ? " (latest)" : ""}`;
  slider.setAttribute("aria-valuetext", `step ${at}`);
  slider.disabled = play.disabled = selections.length === 1;
  fill(byId("selection-at"), at);
  fill(byId("selection-summary"), summary);
  byId("selection-chart").setAttribute("role", "img");
  byId("selection-chart").setAttribute("aria-label", summary);
  draw(selection);
  listenOnce();
  fill(byId("selection-numbers").tBodies[0], ...selection.kept_fraction.map((share, layer) =>
    el("tr", {}, el("th", { scope: "row" }, String(layer)), el("td", { class: "number" }, format.percent(share)),
      el("td", {}, spanOf(selection, layer)?.blocks.join(" ") ?? "all"))));
}

const spanOf = ({ spans }, layer) => spans.find((span) => span.first_layer <= layer && layer <= span.last_layer);

/** What became of every block, a row per layer; a layer in no span involves all of them. */
function fatesByLayer(selection) {
  const entry = entryLayer(job, selection);
  return selection.kept_fraction.map((_, layer) => {
    const span = spanOf(selection, layer);
    const others = layer < entry ? policy.below_entry : policy.unselected;
    const row = new Array(selection.num_blocks).fill(!span ? INVOLVED : others === "forward_only" ? FORWARD_ONLY : ELIMINATED);
    for (const block of span?.blocks ?? []) row[block] = INVOLVED;
    return row;
  });
}

/** Share of the layers in which each block is involved; null past the end of a shorter sequence. */
function layersByBlock(selection, blocks) {
  const layers = selection.kept_fraction.length;
  const free = layers - selection.spans.reduce((sum, span) => sum + span.last_layer - span.first_layer + 1, 0);
  const row = Array.from({ length: blocks }, (_, block) => (block < selection.num_blocks ? free / layers : null));
  for (const { first_layer: first, last_layer: last, blocks: chosen } of selection.spans) {
    for (const block of chosen) row[block] += (last - first + 1) / layers;
  }
  return row;
}

/** At most five of the recorded steps, evenly spread. */
function stepTicks() {
  const last = selections.length - 1;
  const count = Math.min(last, 4);
  return count ? [...new Set(Array.from({ length: count + 1 }, (_, index) => Math.round((index * last) / count)))] : [0];
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
  const entry = entryLayer(job, selection);
  return `${chosen}, ${mean} of tokens, are involved in every layer.${entry === null ? "" : ` They were chosen at layer ${entry}.`}`;
}
