// What the team has on this server: models, and files with their sizes; each can be deleted by who may write.

import { all, expected, get, poll, remove } from "./api.js";
import { announce, asked, byId, complain, el, fill, moment } from "./dom.js";
import * as format from "./format.js";

const MOST = 1000;
const KINDS = { "fine-tune": "to train on", "fine-tune-results": "left by a job" };
let mayWrite = false;
poll(load, 15);

async function load() {
  const [me, models, files] = await Promise.all([get("v1/me"), all("v1/models"), all("v1/files", MOST)]);
  mayWrite = me.key.scopes.includes("write");
  byId("loading").hidden = true;
  byId("models").hidden = models.length === 0;
  fill(byId("models").tBodies[0], ...models.map(modelRow));
  byId("files").hidden = files.length === 0;
  byId("no-files").hidden = files.length > 0;
  fill(byId("files").tBodies[0], ...files.map(fileRow));
  const bytes = files.reduce((sum, file) => sum + file.bytes, 0);
  fill(byId("stored"), files.length < MOST ? `${format.bytes(bytes)} in ${format.count(files.length)} files` : `the newest ${format.count(MOST)} files`);
  return true;
}

const row = (name, id, ...cells) => el("tr", { role: "row" },
  el("th", { role: "rowheader", scope: "row" }, name, id && el("span", { class: "sub mono" }, id)), ...cells);

const cell = (name, content) => el("td", { role: "cell", "data-label": name }, content);

function modelRow({ id, owned_by: owner, created }) {
  const isOurs = owner !== "jenga";
  return row(id, null, cell("Kind", isOurs ? "made by a job" : "base model"), cell("Created", moment(created)),
    el("td", { role: "cell", class: "number" }, isOurs && button("models", id, id)));
}

function fileRow({ id, filename, purpose, bytes, created_at: created, expires_at: expires, status, status_details: details }) {
  const kind = [KINDS[purpose] ?? purpose, expires && el("span", { class: "faint small" }, ` until ${format.moment(expires)}`),
    status === "error" && el("span", { class: "warning small" }, ` ${details}`)];
  return row(filename, id, cell("Kind", el("span", {}, ...kind)), cell("Size", format.bytes(bytes)),
    cell("Created", moment(created)), el("td", { role: "cell", class: "number" }, button("files", id, filename)));
}

const button = (list, id, name) => mayWrite && el("button", {
  class: "danger", "data-list": list, "data-id": id, "data-name": name, "aria-label": `Delete ${name}` }, "Delete");

byId("main").addEventListener("click", async ({ target }) => {
  const { list, id, name } = target.dataset;
  if (!list) return;
  fill(byId("deleted"), name);
  if (!(await asked(byId("confirm"), "delete"))) return;
  complain(byId("problem"), null);
  try {
    await remove(`v1/${list}/${encodeURIComponent(id)}`);
    announce(`${name} is deleted`);
    await load();
  } catch (error) {
    if (!expected(error)) throw error;
    complain(byId("problem"), `${name} was not deleted: ${error.message}`);
  }
});
