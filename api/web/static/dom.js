// Small ways to touch the page. Text goes in as text, never as HTML.

import * as format from "./format.js";

export const byId = (id) => document.getElementById(id);
export const ENDED = ["succeeded", "failed", "cancelled"];

/** Make an element: el("td", {class: "number"}, "12"). Attributes that are null or false are left out. */
export const el = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);

/** The same for a drawing: svg("path", {d: "M0 0"}). */
export const svg = (tag, attributes, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function build(node, attributes = {}, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Give an element these children, but touch only those that differ, so that focus and text selection survive a poll. */
export function fill(node, ...children) {
  const next = document.createDocumentFragment();
  next.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  const wanted = [...next.childNodes];
  if (wanted.length !== node.childNodes.length) return node.replaceChildren(...wanted);
  wanted.forEach((child, index) => {
    const present = node.childNodes[index];
    if (!child.isEqualNode(present)) present.replaceWith(child);
  });
}

/** Show a problem in a box that is hidden without one. */
export function complain(box, message) {
  box.hidden = !message;
  fill(box, message ?? "");
}

/** Say something to screen readers, once. */
export function announce(text) {
  const node = byId("announce");
  if (node.textContent !== text) node.textContent = text;
}

/** Ask in a <dialog>; true when the button with this value was pressed. */
export function asked(dialog, value) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === value), { once: true }));
}

/** A job's state: a dot whose colour and shape differ, and the word. */
export const stateBadge = (state) => el("span", { class: `state ${state}` }, state);

/** When something was, as people read it and as machines do. */
export const moment = (seconds, words = format.moment) =>
  el("time", { datetime: new Date(1000 * seconds).toISOString(), title: format.moment(seconds) }, words(seconds));

/** A progress bar with its numbers beside it. */
export function progress({ state, step, total_steps: total }) {
  if (!total) return [el("span", { class: "faint" }, state === "running" ? "starting" : "–")];
  return [
    el("progress", { max: total, value: step, "aria-label": `Step ${step} of ${total}` }),
    el("span", { class: "steps" }, `${format.count(step)} / ${format.count(total)}`),
  ];
}

/** A share of one as a bar. */
export function bar(share, kind = "ours") {
  const line = el("span", { class: `bar ${kind}`, "aria-hidden": "true" });
  line.style.width = `${100 * Math.max(0, Math.min(1, share))}%`;
  return line;
}

/** Terms and what they are: <dt>, <dd>, for what is known. */
export function pairs(object) {
  return Object.entries(object).filter(([, value]) => value !== null && value !== undefined)
    .flatMap(([name, value]) => [el("dt", {}, format.words(name)), el("dd", {}, value instanceof Node ? value : String(value))]);
}
