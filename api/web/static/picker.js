// A file of the server, picked or uploaded, with its first rows and, beside them, what is wrong with which row.

import { expected, remove, upload, url } from "./api.js";
import { el, fill } from "./dom.js";
import * as format from "./format.js";

const FIRST = 3, MOST_ERRORS = 50, EXCERPT = 240;
const READ_BYTES = 16 * 2 ** 20; // rows further down than this are not looked up

export class Picker {
  constructor(box, { placeholder, onChange }) {
    const part = (selector) => box.querySelector(selector);
    Object.assign(this, { box, placeholder, onChange, files: [], select: part("select"), said: part(".said"), rows: part(".rows"),
      progress: part(".progress"), local: null });
    this.select.addEventListener("change", () => this.picked());
    const input = part("input[type=file]");
    input.addEventListener("change", () => input.files[0] && this.send(input.files[0], input));
    if (input.files[0]) this.send(input.files[0], input); // chosen before this code was there
    for (const kind of ["dragover", "drop"]) {
      box.addEventListener(kind, (event) => {
        event.preventDefault();
        if (kind === "drop" && event.dataTransfer.files[0]) this.send(event.dataTransfer.files[0]);
      });
    }
  }

  /** The id of the chosen file, or "". */
  get id() {
    return this.select.value;
  }

  /** Files to choose from; those that failed the check are no choice. */
  offer(files) {
    const listed = new Set(files.map(({ id }) => id));
    const uploaded = this.files.filter(({ id }) => !listed.has(id)); // while the list was on its way
    this.files = [...uploaded, ...files.filter(({ status }) => status !== "error")];
    this.list(this.id);
  }

  /** Choose a file by its id, if it is still there. */
  choose(id) {
    if (id && !this.files.some((file) => file.id === id)) {
      return this.tell(`The file ${id} is no longer on the server. Choose another, or upload it again.`, "warning");
    }
    this.list(id);
    if (id) this.show(id);
  }

  list(chosen) {
    this.select.replaceChildren(el("option", { value: "" }, this.placeholder), ...this.files.map((file) =>
      el("option", { value: file.id }, `${file.filename} · ${format.bytes(file.bytes)} · ${format.brief(file.created_at)}`)));
    this.select.value = chosen;
  }

  picked() {
    this.local = null;
    this.tell(null);
    if (this.id) this.show(this.id);
    else this.rows.hidden = true;
  }

  async send(file, input) {
    this.local = file;
    this.tell(null);
    this.progress.hidden = false;
    const [line, share] = this.progress.children;
    const form = new FormData();
    form.append("purpose", "fine-tune");
    form.append("file", file, file.name);
    try {
      const stored = await upload("v1/files", form, (part) => {
        line.value = part;
        share.textContent = part < 1 ? `${format.percent(part)} of ${format.bytes(file.size)}` : "Checking every row…";
      });
      if (stored.status === "error") {
        this.list("");
        const row = Number(/^Row (\d+)/.exec(stored.status_details)?.[1]);
        this.tell(`${file.name} was not accepted: ${stored.status_details}. Correct the file and upload it again.`, "warning");
        await this.showRows(file, row ? [{ row, message: stored.status_details.replace(/^Row \d+: /, "") }] : []);
        await remove(`v1/files/${stored.id}`);
      } else {
        this.files.unshift(stored);
        this.list(stored.id);
        this.tell(`${file.name} is on the server, and every row can be read.`);
        await this.showRows(file, []);
      }
    } catch (error) {
      if (!expected(error)) throw error;
      this.tell(`${file.name} was not uploaded: ${error.message}`, "warning");
    }
    this.progress.hidden = true;
    if (input) input.value = ""; // choosing the same, corrected file again is a change, too
    this.onChange();
  }

  /** Show rows that the server found wrong later ([{row, message}]). */
  async showErrors(errors) {
    if (!errors.length || !this.id) return;
    this.tell(`${errors.length === 1 ? "A row" : `${errors.length} rows`} of this file cannot be used.`, "warning");
    await this.showRows(this.local ?? this.id, errors);
  }

  async show(id) {
    try {
      await this.showRows(id, []);
    } catch (error) {
      this.rows.hidden = true;
      this.tell(`The rows cannot be shown: ${error.message}`, "warning");
    }
  }

  async showRows(source, errors) {
    const wrong = new Map(errors.slice(0, MOST_ERRORS).map(({ row, message }) => [row, message]));
    const numbers = [...new Set([1, 2, 3].slice(0, FIRST).concat([...wrong.keys()]))].sort((left, right) => left - right);
    const found = await linesOf(source, numbers);
    this.rows.hidden = found.size === 0;
    fill(this.rows.querySelector("tbody"), ...numbers.filter((number) => found.has(number) || wrong.has(number)).map((number) =>
      el("tr", { class: wrong.has(number) ? "wrong" : null },
        el("th", { scope: "row", class: "number" }, String(number)),
        el("td", {}, wrong.has(number) && el("strong", {}, wrong.get(number)),
          el("code", {}, cut(found.get(number) ?? "(further down than is shown here)"))))));
  }

  tell(message, kind = "faint") {
    this.said.hidden = !message;
    this.said.className = `said small ${kind}`;
    this.said.textContent = message ?? "";
  }
}

const cut = (line) => (line.length > EXCERPT ? `${line.slice(0, EXCERPT)}…` : line || "(an empty line)");

async function download(id) {
  const response = await fetch(url(`v1/files/${id}/content`));
  if (!response.ok) throw new Error(`the server answered ${response.status}`);
  return response.body;
}

/** Lines by number, counted from 1, of a local file or of a stored one; reading stops behind the last that is wanted. */
async function linesOf(source, numbers) {
  const last = Math.max(...numbers);
  const body = source instanceof Blob ? source.stream() : await download(source);
  const found = new Map();
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let number = 1, line = "", read = 0;
  const end = () => numbers.includes(number) && found.set(number, line);
  for (;;) {
    const { done, value } = await reader.read();
    if (done) {
      if (line) end();
      break;
    }
    read += value.length;
    const [first, ...others] = value.split("\n");
    line = (line + first).slice(0, 4 * EXCERPT);
    for (const next of others) {
      end();
      number += 1;
      line = next.slice(0, 4 * EXCERPT);
    }
    if (number > last || read > READ_BYTES) {
      await reader.cancel();
      break;
    }
  }
  return found;
}
