// Numbers and times as people read them.

// Made once: making a format takes longer than a hundred uses of it.
const NUMBER = new Intl.NumberFormat("en");
const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const SECOND = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const MINUTE = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit", hour12: false });
const DAY = new Intl.DateTimeFormat([], { day: "numeric", month: "short" });
const DAY_AND_YEAR = new Intl.DateTimeFormat([], { day: "numeric", month: "short", year: "numeric" });

export const loss = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
export const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)}%`;
export const count = (value) => NUMBER.format(value);
/** Any number: grouped when whole, five digits otherwise. */
export const figure = (value) => (Number.isInteger(value) ? count(value) : String(Number(value.toPrecision(5))));
export const words = (name) => name.replaceAll("_", " ");
/** 12345 -> "12.3k": where space is short. */
export const short = (value) => COMPACT.format(value);

/** Binary units, three digits: 640 MiB, 1.28 GiB. */
export function bytes(value) {
  if (value === 0) return "0";
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1023.5 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit ? Number(value.toPrecision(3)) : value} ${units[unit]}`;
}

/** "5.3× less", "1.2× more" or, within 2%, "the same", of ours against theirs. */
export function comparison(ours, theirs) {
  if (!ours || !theirs) return "–";
  const ratio = theirs / ours;
  if (Math.abs(ratio - 1) < 0.02) return "the same";
  return ratio > 1 ? `${times(ratio)} less` : `${times(1 / ratio)} more`;
}

const times = (ratio) => `${ratio < 1.1 ? ratio.toFixed(2) : ratio.toFixed(1)}×`;

/** Seconds since 1970 as a local date and time; today's as the time alone. */
export function moment(seconds) {
  const date = new Date(1000 * seconds);
  return isToday(date) ? SECOND.format(date) : `${DAY_AND_YEAR.format(date)} ${SECOND.format(date)}`;
}

/** The same where space is short: to the minute, and the year only when it is another one. */
export function brief(seconds) {
  const date = new Date(1000 * seconds);
  if (isToday(date)) return MINUTE.format(date);
  const day = date.getFullYear() === new Date().getFullYear() ? DAY : DAY_AND_YEAR;
  return `${day.format(date)}, ${MINUTE.format(date)}`;
}

const isToday = (date) => date.toDateString() === new Date().toDateString();

/** 75 -> "1 min 15 s". */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  if (hours) return `${hours} h ${minutes} min`;
  if (minutes) return whole % 60 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
  return `${whole} s`;
}

/** How long a job has run, without waits and pauses: "29 s"; null where it never did. */
export function ran({ jenga: { state, started_at: started, ran_seconds: seconds } }) {
  if (started === null) return null;
  const runs = ["running", "pausing", "cancelling"].includes(state);
  return duration(seconds + (runs ? Date.now() / 1000 - started : 0));
}

/** "stopped at step 2 of 498" of a job whose owner ended it early; else null. */
export const stopped = ({ state, stop_asked_at: asked, step, total_steps: total }) =>
  (state === "succeeded" && asked !== null && step < total ? `stopped at step ${count(step)} of ${count(total)}` : null);

/** 5000 seconds ago -> "1 h ago". */
export function ago(seconds) {
  const age = Math.max(0, Date.now() / 1000 - seconds);
  if (age < 60) return "just now";
  if (age < 3600) return `${Math.floor(age / 60)} min ago`;
  return age < 86_400 ? `${Math.floor(age / 3600)} h ago` : moment(seconds);
}
