// The team's API keys: make one (its secret is shown once), see what each may do, revoke one. And the team's quotas.

import { all, expected, get, poll, post, remove } from "./api.js";
import { announce, asked, bar, byId, complain, el, fill, moment } from "./dom.js";
import * as format from "./format.js";

let own = null; // id of the key that this browser uses
let isAdmin = false;
poll(load, 15);

async function load() {
  const me = await get("v1/me");
  own = me.key.id;
  isAdmin = me.key.scopes.includes("admin");
  byId("create").hidden = !isAdmin;
  byId("no-admin").hidden = isAdmin;
  fill(byId("team"), `of ${me.team.name}; this browser uses ${me.key.name} (${me.key.scopes.join(", ")})`);
  showQuotas(me.quotas);
  await showKeys();
  return true;
}

async function showKeys() {
  const keys = await all("v1/keys");
  byId("keys").hidden = false;
  fill(byId("keys").tBodies[0], ...keys.map((key) => el("tr", { role: "row", class: key.revoked_at ? "faint" : null },
    el("th", { role: "rowheader", scope: "row" }, key.name || key.id, el("span", { class: "sub mono" }, `jenga_${key.id}_…`)),
    cell("May", key.scopes.join(", ")),
    cell("Created", moment(key.created_at)),
    cell("Last used", key.last_used_at ? format.ago(key.last_used_at) : "never"),
    el("td", { role: "cell", class: "number" }, standing(key)))));
}

const cell = (name, content) => el("td", { role: "cell", "data-label": name }, content);

/** Revoked, this browser's own, or a button that revokes it. */
function standing(key) {
  if (key.revoked_at) return "revoked";
  if (key.id === own) return el("span", { class: "faint" }, "in use here");
  return isAdmin && el("button", { class: "danger", "data-revoke": key.id, "aria-label": `Revoke ${key.name || key.id}` }, "Revoke");
}

function showQuotas(quotas) {
  const limits = Object.entries(quotas ?? {}).filter(([name, limit]) => name !== "used" && typeof limit === "number");
  byId("quotas").hidden = limits.length === 0;
  fill(byId("quotas").querySelector(".bars"), ...limits.map(([name, limit]) => {
    const plain = name.replace(/^max_/, "");
    const used = quotas.used?.[plain] ?? quotas.used?.[name] ?? 0;
    const amount = plain.endsWith("_bytes") ? format.bytes : format.figure;
    return el("div", {}, el("p", {}, el("span", {}, format.words(plain.replace(/_bytes$/, ""))),
      el("span", { class: "amount" }, `${amount(used)} of ${amount(limit)}`)), el("div", { class: "track" }, bar(used / limit)));
  }));
}

/** Do it, and say what went wrong if it did. */
async function attempt(work) {
  complain(byId("problem"), null);
  try {
    await work();
  } catch (error) {
    if (!expected(error)) throw error;
    complain(byId("problem"), error.message);
  }
}

byId("create").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  await attempt(async () => {
    const key = await post("v1/keys", { name: form.get("name").trim(), scopes: form.getAll("scope") });
    byId("made").hidden = false;
    byId("secret").value = key.secret ?? key.key;
    byId("secret").focus();
    byId("secret").select();
    event.target.reset();
    await showKeys();
  });
});

byId("keys").addEventListener("click", async ({ target }) => {
  const id = target.dataset.revoke;
  if (!id) return;
  fill(byId("revoked"), target.closest("tr").querySelector("th").firstChild.textContent);
  if (await asked(byId("confirm"), "revoke")) {
    await attempt(async () => {
      await remove(`v1/keys/${id}`);
      announce("The key is revoked");
      await showKeys();
    });
  }
});

byId("copy").addEventListener("click", async () => {
  byId("secret").select();
  try {
    await navigator.clipboard.writeText(byId("secret").value);
    fill(byId("copy"), "Copied");
  } catch {
    fill(byId("copy"), "Press Ctrl+C"); // without https a page may not write to the clipboard
  }
});
byId("done").addEventListener("click", () => {
  byId("secret").value = "";
  byId("made").hidden = true;
  fill(byId("copy"), "Copy");
});
