// The loss curve (training loss of every step, held-out loss where it was measured; step 0 is before training) above the
// throughput of the same steps.

import { axis, chart, colour, counting, smooth } from "./chart.js";
import { byId, el, fill } from "./dom.js";
import * as format from "./format.js";

const ROWS_SHOWN = 200;
const draw = chart(byId("loss-chart"), (metrics) => {
  const series = (name, key, mark) => {
    const known = metrics.filter((metric) => metric[key] !== null);
    return { name, x: known.map((metric) => metric.step), y: known.map((metric) => metric[key]), ...mark,
      cliponaxis: false };
  };
  const many = metrics.length > 60;
  const paced = metrics.some((metric) => metric.tokens_per_second !== null); // plotly cannot place an axis without data
  const train = series("train", "train_loss", { mode: many ? "lines" : "lines+markers", hovertemplate: "%{y:.4f}",
    line: { color: colour("ours"), width: many ? 1 : 2 }, marker: { size: 5 }, opacity: many ? 0.45 : 1 });
  return {
    traces: [
      train,
      ...(many ? [{ ...train, name: "train, smoothed", y: smooth(train.y), line: { color: colour("ours"), width: 2 }, opacity: 1 }] : []),
      series("held-out", "valid_loss", { mode: "lines+markers", hovertemplate: "%{y:.4f}",
        line: { color: colour("held-out"), width: 2, dash: "dot" }, marker: { size: 8, symbol: "diamond" } }),
      ...(paced ? [series("tokens/s", "tokens_per_second", { mode: "lines", hovertemplate: "%{y:,.0f}", yaxis: "y2",
        fill: "tozeroy", line: { color: colour("dense"), width: 1.5 } })] : []),
    ],
    layout: {
      height: 350,
      margin: { l: 52, r: 12, t: 24, b: 40 },
      hovermode: "x unified",
      hoversubplots: "axis",
      showlegend: true,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      xaxis: axis("step", { rangemode: "tozero", showgrid: false, anchor: paced ? "y2" : "y", ...counting(metrics.at(-1).step) }),
      yaxis: axis("loss (nats/token)", { domain: [paced ? 0.32 : 0, 1] }),
      ...(paced && { yaxis2: axis("tokens/s", { domain: [0, 0.22], rangemode: "tozero", nticks: 3 }) }),
    },
  };
});

/** Show these metrics ([{step, train_loss, valid_loss, ...}], oldest first). */
export function showLoss(metrics, ended) {
  const summary = summarize(metrics, ended);
  fill(byId("loss-summary"), summary);
  byId("loss-numbers").hidden = metrics.length === 0;
  if (metrics.length === 0) return;
  byId("loss-chart").setAttribute("role", "img");
  byId("loss-chart").setAttribute("aria-label", `Loss curve. ${summary}`);
  draw(metrics);
  const number = (text) => el("td", { class: "number" }, text);
  fill(byId("loss-numbers").querySelector("tbody"), ...metrics.slice(-ROWS_SHOWN).reverse().map((metric) =>
    el("tr", {}, el("th", { scope: "row" }, String(metric.step)), number(format.loss(metric.train_loss)),
      number(format.loss(metric.valid_loss)), number(metric.learning_rate?.toExponential(2) ?? "–"),
      number(metric.tokens_per_second ? format.count(Math.round(metric.tokens_per_second)) : "–"))));
}

function summarize(metrics, ended) {
  if (metrics.length === 0) return ended ? "The job ended before its first step." : "The curve begins with the first step.";
  const trained = metrics.filter((metric) => metric.train_loss !== null);
  const heldOut = metrics.filter((metric) => metric.valid_loss !== null);
  const parts = [];
  if (heldOut.length > 1) {
    const [first, last] = [heldOut[0], heldOut.at(-1)];
    parts.push(`Held-out loss ${format.loss(first.valid_loss)} at step ${first.step}, ` +
      `${format.loss(last.valid_loss)} at step ${last.step}.`);
  } else if (heldOut.length === 1) {
    parts.push(`Held-out loss ${format.loss(heldOut[0].valid_loss)} at step ${heldOut[0].step}.`);
  }
  if (trained.length) parts.push(`Train loss ${format.loss(trained.at(-1).train_loss)} at step ${trained.at(-1).step}.`);
  return parts.join(" ");
}
