// Numbers and times as people read them.

export const loss = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
export const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)}%`;
export const count = (value) => value.toLocaleString("en");
/** Any number: grouped when whole, five digits otherwise. */
export const figure = (value) => (Number.isInteger(value) ? count(value) : String(Number(value.toPrecision(5))));
export const words = (name) => name.replaceAll("_", " ");

/** Decimal units, three digits: 640 MB, 1.28 GB. */
export function bytes(value) {
  if (value === 0) return "0";
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
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
  const clock = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
  const today = date.toDateString() === new Date().toDateString();
  return today ? clock : `${date.toLocaleDateString([], { day: "numeric", month: "short", year: "numeric" })} ${clock}`;
}

/** 75 -> "1 min 15 s". */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}
