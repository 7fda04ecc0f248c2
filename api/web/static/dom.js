// Small ways to touch the page. Text goes in as text, never as HTML.

export const byId = (id) => document.getElementById(id);

/** Make an element: el("td", {class: "number"}, "12"). Attributes that are null or false are left out. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** Give an element these children, but touch only those that differ, so that focus and text selection survive a poll. */
export function fill(node, ...children) {
  const next = document.createDocumentFragment();
  next.append(...children);
  const wanted = [...next.childNodes];
  if (wanted.length !== node.childNodes.length) return node.replaceChildren(...wanted);
  wanted.forEach((child, index) => {
    const present = node.childNodes[index];
    if (!child.isEqualNode(present)) present.replaceWith(child);
  });
}

/** Say something to screen readers, once. */
export function announce(text) {
  const node = byId("announce");
  if (node.textContent !== text) node.textContent = text;
}

/** A job's state: a dot whose colour and shape differ, and the word. */
export const stateBadge = (state) => el("span", { class: `state ${state}` }, state);

/** A progress bar with its numbers beside it; without a known total it shows movement only. */
export function progress({ state, step, total_steps: total }, ended) {
  if (!total) return [el("span", { class: "faint" }, ended || state === "queued" ? "–" : "starting")];
  return [
    el("progress", { max: total, value: step, "aria-label": `Step ${step} of ${total}` }),
    el("span", { class: "steps" }, `${step} / ${total}`),
  ];
}
