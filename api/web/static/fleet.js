// Machines, their devices and who holds them; the queue; each team's share.

import { get, poll } from "./api.js";
import { bar, byId, el, fill, stateBadge } from "./dom.js";
import * as format from "./format.js";

poll(load, 5);

async function load() {
  const { workers, queue, teams } = await get("v1/fleet");
  const online = workers.filter(({ state }) => state === "online");
  const devices = workers.flatMap((worker) => (worker.state === "lost" ? [] : worker.devices));
  const held = devices.filter(({ held_by: holder }) => holder).length;
  fill(byId("summary"), [plural(online.length, "worker"), `${held} of ${plural(devices.length, "device")} held`,
    plural(queue.length, "job") + " waiting"].join(" · "));
  byId("empty").hidden = workers.length > 0;
  const names = new Map(teams.map((team) => [team.team_id, team.name]));
  fill(byId("workers"), ...workers.map((worker) => card(worker, names)));

  byId("no-queue").hidden = queue.length > 0;
  byId("queue").hidden = queue.length === 0;
  fill(byId("queue").tBodies[0], ...queue.map((entry) => el("tr", { role: "row" },
    cell("number", String(entry.position)), cell("job", jobLink(entry.job_id)),
    cell("team", teamName(entry.team_id, names)), cell("reason", entry.reason))));

  const most = Math.max(...teams.map((team) => team.gpu_seconds_decayed), 1);
  fill(byId("teams").tBodies[0], ...teams.map((team) => el("tr", {}, el("th", { scope: "row" }, team.name ?? "another team"),
    el("td", { class: "number" }, String(team.running)), el("td", { class: "number" }, String(team.queued)),
    el("td", { class: "gauge" }, el("span", { class: "amount" }, hours(team.gpu_seconds_decayed)),
      el("span", { class: "track" }, bar(team.gpu_seconds_decayed / most))))));
  return true;
}

const cell = (kind, content) => el("td", { role: "cell", class: kind }, content);

function card(worker, names) {
  return el("article", { class: "card", "aria-label": `Worker on ${worker.host}` },
    el("h2", {}, worker.host, " ", stateBadge(worker.state)),
    el("p", { class: "faint small" }, [`heard from ${format.ago(worker.heartbeat_at)}`,
      worker.memory_bytes && `host memory ${format.bytes(worker.memory_bytes)}`, versions(worker.versions)].filter(Boolean).join(" · ")),
    ...worker.devices.map((device) => el("div", { class: "device bars" },
      el("p", {}, el("strong", {}, device.name), el("span", { class: "amount" }, device.memory_used_bytes === null
        ? format.bytes(device.memory_bytes) : `${format.bytes(device.memory_used_bytes)} of ${format.bytes(device.memory_bytes)}`)),
      el("div", { class: "track" }, bar((device.memory_used_bytes ?? 0) / device.memory_bytes)),
      el("p", { class: "small" }, el("span", {}, ...holder(device, names)),
        foreign(device)))));
}

function holder({ held_by: held, foreign_processes: others }, names) {
  if (!held) return [el("span", { class: "faint" }, others?.length ? "takes no job" : "free")];
  return ["held by ", jobLink(held.job_id), ` (${teamName(held.team_id, names)})`];
}

/** Processes on a device that are no job's, by name. */
function foreign({ held_by: held, foreign_processes: processes }) {
  if (!processes?.length) return "";
  const names = processes.map(({ name, pid }) => `${name} (process ${pid})`).join(", ");
  return el("span", { class: "warning", title: names }, `${held ? "also " : ""}${plural(processes.length, "process", "processes")} of others`);
}

const jobLink = (id) => (id ? el("a", { class: "mono", href: `jobs/${id}` }, id) : el("span", { class: "faint" }, "another team's job"));
const teamName = (id, names) => names.get(id) ?? id ?? "another team";
const versions = (known) => Object.entries(known ?? {}).map(([name, version]) => `${name} ${version}`).join(", ");
const plural = (number, word, words = `${word}s`) => `${number} ${number === 1 ? word : words}`;

function hours(seconds) {
  return seconds < 3600 ? `${format.count(Math.round(seconds / 60))} min` : `${format.figure(Number((seconds / 3600).toFixed(1)))} h`;
}
