// The team's predictors: what each is for, how large, and how much of the exact choice it recalls, layer by layer.

import { all, poll } from "./api.js";
import { bar, byId, el, fill, moment, pairs } from "./dom.js";
import * as format from "./format.js";

poll(load, 15);

async function load() {
  const found = await all("v1/predictors");
  byId("loading").hidden = true;
  byId("empty").hidden = found.length > 0;
  byId("predictors").hidden = found.length === 0;
  fill(byId("predictors"), ...found.map(card));
  return true;
}

function card(predictor) {
  const { report, settings } = predictor;
  const layers = Object.entries(report.layers ?? {});
  const recalls = layers.map(([, { recall }]) => recall);
  const lowest = Math.min(...recalls);
  return el("article", { class: "card predictor-card", "aria-label": predictor.id },
    el("div", {},
      el("h2", {}, predictor.base_model, el("span", { class: "faint mono small" }, ` ${predictor.id}`)),
      el("p", {}, layers.length ? `Recall ${format.percent(lowest)} or more of the blocks that exact scores choose, in ${layers.length} ${layers.length === 1 ? "layer" : "layers"}.` : ""),
      el("dl", { class: "pairs" }, ...pairs({
        size: report.parameters ? `${format.short(report.parameters)} parameters, ${(100 * report.parameter_fraction).toFixed(2)}% of the model` : null,
        "made by": el("a", { class: "mono", href: `jobs/${predictor.job_id}` }, predictor.job_id),
        made: moment(predictor.created_at),
      })),
      el("details", {}, el("summary", {}, "Settings they depend on"), el("pre", { tabindex: "0" }, JSON.stringify(settings, null, 2)))),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Layers of ${predictor.id}` }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Layer"), el("th", { scope: "col" }, "Recall"),
        el("th", { scope: "col", class: "number" }, "Precision"), el("th", { scope: "col", class: "number" }, "Chance"))),
      el("tbody", {}, ...layers.map(([layer, { recall, precision, chance }]) => el("tr", {}, el("th", { scope: "row" }, layer),
        el("td", { class: "gauge" }, el("span", { class: "amount" }, format.percent(recall)), el("span", { class: "track" }, bar(recall))),
        el("td", { class: "number" }, share(precision)), el("td", { class: "number faint" }, share(chance))))))));
}

const share = (value) => (value === undefined || value === null ? "–" : format.percent(value));
