// Small loss curves in the list of jobs: read only for rows that can be seen, a few at a time, again when a job moved on.

import { get } from "./api.js";
import { fill, svg } from "./dom.js";
import * as format from "./format.js";

const POINTS = 48, WIDTH = 72, HEIGHT = 22, AT_ONCE = 4;
const wanted = new Map(); // row -> job
let busy = 0;

const sight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) target.dataset.seen = isIntersecting ? "yes" : "";
  next();
}, { rootMargin: "200px" });

/** Draw the job's loss into its row, now or once the row is seen. */
export function drawCurve(row, job) {
  if (!job.jenga.step) return;
  wanted.set(row, job);
  sight.observe(row);
  if (row.dataset.seen) next();
}

async function next() {
  for (const [row, job] of wanted) {
    if (busy >= AT_ONCE) return;
    if (!row.dataset.seen || !row.isConnected) continue;
    wanted.delete(row);
    busy += 1;
    try {
      const { data } = await get(`v1/fine_tuning/jobs/${job.id}/metrics?max_points=${POINTS}`);
      draw(row, data);
    } catch {
      // the list itself says that the server is away; the curve is drawn when the job moves on
    } finally {
      busy -= 1;
    }
  }
}

function draw(row, metrics) {
  const values = metrics.map((metric) => metric.train_loss).filter((value) => value !== null);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (values.length < 2) return;
  const x = (index) => (1 + (index * (WIDTH - 2)) / (values.length - 1)).toFixed(1);
  const y = (value) => (HEIGHT - 2 - ((value - low) * (HEIGHT - 4)) / (high - low || 1)).toFixed(1);
  const points = values.map((value, index) => `${x(index)},${y(value)}`).join(" ");
  const label = `Train loss fell from ${format.loss(values[0])} to ${format.loss(values.at(-1))}`;
  fill(row.querySelector(".curve"), svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, width: WIDTH, height: HEIGHT, role: "img",
    "aria-label": values.at(-1) < values[0] ? label : label.replace("fell", "went") }, svg("polyline", { points })));
}
