// A new job: files, settings, a live estimate, submit. What the server refuses is said beside the field that it names.

import { all, expected, get, poll, post, url } from "./api.js";
import { byId, complain, el, fill } from "./dom.js";
import { Estimate } from "./estimate.js";
import * as format from "./format.js";
import { Picker } from "./picker.js";

const form = byId("form");
const defaults = JSON.parse(form.dataset.defaults);
const training = new Picker(byId("training_file"), { placeholder: "Choose a file…", onChange: edited });
const validation = new Picker(byId("validation_file"), { placeholder: "None", onChange: edited });
const estimate = new Estimate(request, contextOf, (rows) => training.showErrors(rows));
const inputs = [...form.querySelectorAll("[data-path], [data-hyper], [data-place]")];
const nameOf = ({ dataset: { path, hyper, place } }) => path ?? hyper ?? place;

poll(start);

async function start() {
  const [{ data: models }, files] = await Promise.all([get("v1/models"), all("v1/files?purpose=fine-tune")]);
  const base = models.filter(({ owned_by: owner }) => owner === "jenga");
  byId("no-models").hidden = base.length > 0;
  form.hidden = base.length === 0;
  fill(byId("model"), ...base.map(({ id }) => el("option", {}, id)));
  training.offer(files);
  validation.offer(files);
  const origin = new URLSearchParams(location.search).get("from");
  if (origin) await copy(origin);
  showDefaults();
  form.addEventListener("input", edited);
  form.addEventListener("submit", submit);
  changed();
  return false;
}

/** Fill the form with another job's settings: those that differ from its preset's own. */
async function copy(id) {
  let job;
  try {
    job = await get(`v1/fine_tuning/jobs/${encodeURIComponent(id)}`);
  } catch (error) {
    if (!expected(error)) throw error;
    return complain(byId("problem"), `Nothing was copied: ${error.message}`);
  }
  fill(byId("origin"), "with the settings of ", el("a", { class: "mono", href: url(`jobs/${job.id}`) }, job.id));
  byId("model").value = job.model;
  byId("preset").value = job.jenga.config.preset;
  byId("suffix").value = job.user_provided_suffix ?? "";
  byId("seed").value = job.seed ?? "";
  training.choose(job.training_file);
  validation.choose(job.validation_file ?? "");
  for (const input of inputs.filter((each) => each.id !== "preset")) {
    if (input.dataset.hyper) {
      const value = job.hyperparameters[input.dataset.hyper];
      input.value = value === "auto" || value === undefined ? "" : value;
      continue;
    }
    if (input.dataset.place) {
      input.value = job.jenga[input.dataset.place];
      continue;
    }
    const value = at(job.jenga.config, input.dataset.path);
    const own = at(defaults[byId("preset").value], input.dataset.path);
    if (JSON.stringify(value) !== JSON.stringify(own) || input.type === "range") input.value = text(value);
  }
  if (job.jenga.config.max_steps) byId("n_epochs").value = ""; // what is overruled is not asked for again
  if (job.jenga.config.learning_rate) byId("multiplier").value = "";
  byId("more").open = inputs.some((input) => input.value && byId("more").contains(input));
}

/** Whatever was refused was refused of the form as it was. */
function edited() {
  blame(null);
  changed();
}

function changed() {
  showDefaults();
  estimate.update();
}

/** What the preset uses where nothing is given. */
function showDefaults() {
  const preset = defaults[byId("preset").value];
  for (const input of inputs) {
    const own = input.dataset.path && at(preset, input.dataset.path);
    if (input.tagName === "INPUT" && input.type !== "range" && input.dataset.path) input.placeholder = text(own) || input.dataset.unset || "none";
    if (input.tagName === "SELECT" && input.options[0].value === "") input.options[0].text = text(own) ? `default (${text(own)})` : "default";
    if (input.type === "range" && !input.dataset.moved) input.value = own ?? 0.4;
  }
  fill(byId("keep_fraction-said"), format.percent(Number(byId("keep_fraction").value)));
  for (const field of form.querySelectorAll(".sparse")) field.hidden = !preset.enabled || preset.selection.by === "threshold";
}
byId("keep_fraction").addEventListener("input", () => (byId("keep_fraction").dataset.moved = "yes"));

/** Tokens of the longest sequence that a job of this body trains on. */
function contextOf({ jenga }) {
  return jenga.context_length_tokens ?? defaults[byId("preset").value].context_length_tokens;
}

/** The body of the request, or null while a file or a model is missing. */
function request() {
  const body = { model: byId("model").value, training_file: training.id, jenga: {} };
  if (!body.model || !body.training_file) return null;
  if (validation.id) body.validation_file = validation.id;
  if (byId("suffix").value.trim()) body.suffix = byId("suffix").value.trim();
  if (byId("seed").value.trim()) body.seed = parsed(byId("seed").value);
  const hyper = {};
  for (const input of inputs) {
    const value = input.value.trim();
    if (value === "" || input.closest("[hidden]")) continue;
    if (input.dataset.hyper) hyper[input.dataset.hyper] = parsed(value);
    else if (input.tagName !== "SELECT" || value !== input.options[0].value || input.id === "preset") put(body.jenga, nameOf(input), parsed(value));
  }
  if (Object.keys(hyper).length) body.method = { type: "supervised", supervised: { hyperparameters: hyper } };
  return body;
}

async function submit(event) {
  event.preventDefault();
  blame(null);
  const body = request();
  if (!body) return blame({ message: "Choose a training file first, or upload one.", param: "training_file" });
  byId("submit").disabled = true;
  fill(byId("busy"), "Submitting…");
  try {
    const job = await post("v1/fine_tuning/jobs", body);
    location.assign(url(`jobs/${job.id}`));
  } catch (error) {
    if (!expected(error)) throw error;
    blame(error);
    byId("submit").disabled = false;
    fill(byId("busy"));
  }
}

/** Say what was refused, and mark the field. */
function blame(error) {
  for (const marked of form.querySelectorAll("[aria-invalid]")) marked.removeAttribute("aria-invalid");
  complain(byId("problem"), error && error.message);
  estimate.sayRefusal();
  if (!error?.param) return;
  const path = error.param.replace(/^jenga\./, "").replace(/^(method\.supervised\.)?hyperparameters\./, "");
  const field = inputs.find((input) => nameOf(input) === path)
    ?? byId(`${path}-pick`) ?? form.querySelector(`[name="${CSS.escape(path)}"]`);
  if (!field) return;
  field.closest("details")?.setAttribute("open", "");
  field.setAttribute("aria-invalid", "true");
  field.focus();
}

/** As JSON where it is JSON, like `jenga submit --option`; else as the text it is. */
function parsed(value) {
  try {
    return JSON.parse(value);
  } catch {
    return value;
  }
}

const text = (value) => (value === null || value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value));
const at = (tree, path) => path.split(".").reduce((node, name) => node?.[name], tree);

function put(tree, path, value) {
  const names = path.split(".");
  const last = names.pop();
  names.reduce((node, name) => (node[name] ??= {}), tree)[last] = value;
}
