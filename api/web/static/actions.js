// What can be done to a job, and asking first where it cannot be taken back.

import { expected, post } from "./api.js";
import { announce, asked, byId, complain, ENDED } from "./dom.js";

const NAMES = { pause: "Pausing", resume: "Resuming", stop: "Stopping", cancel: "Cancelling" };
const possible = {
  pause: ({ state }) => ["queued", "running"].includes(state),
  resume: ({ state }) => state === "paused",
  stop: ({ state, stage, stop_asked_at: asked }) => state === "running" && stage === "finetune" && asked === null,
  cancel: ({ state }) => state !== "cancelling" && !ENDED.includes(state),
};

/** Wire the buttons; the answer to each goes to `show`. */
export function offerActions(path, show) {
  for (const name of Object.keys(possible)) {
    byId(name).addEventListener("click", async () => {
      const dialog = byId(`confirm-${name}`);
      if (dialog && !(await asked(dialog, name))) return;
      byId(name).disabled = true;
      try {
        const job = await post(`${path}/${name}`);
        show(job);
        showActions(job);
      } catch (error) {
        if (!expected(error)) throw error;
        const message = `${NAMES[name]} did not work: ${error.message}`;
        complain(byId("failure"), message);
        announce(message);
      }
      byId(name).disabled = false;
    });
  }
}

/** Show the buttons that mean something now. */
export function showActions({ jenga }) {
  for (const [name, may] of Object.entries(possible)) byId(name).hidden = !may(jenga);
}
