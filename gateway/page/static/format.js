// Numbers and times as people read them, the same everywhere: a dash is what is not known.

export const DASH = "–";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenths = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const hundredths = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

const isKnown = (value) => value !== null && value !== undefined;

export const count = (value) => (isKnown(value) ? whole.format(value) : DASH);

export const short = (value) => (isKnown(value) ? (Math.abs(value) < 10000 ? whole : compact).format(value) : DASH);

/** Milliseconds: 7.4 ms, 312 ms, 2.84 s, 31.6 s. */
export function ms(value) {
  if (!isKnown(value)) return DASH;
  const size = Math.abs(value);
  if (size < 9.95) return `${tenths.format(value)} ms`;
  if (size < 999.5) return `${whole.format(value)} ms`;
  return `${(size < 9995 ? hundredths : tenths).format(value / 1000)} s`;
}

/** A share of one, cut and not rounded: what is below a promise never reads as kept. */
export const percent = (share) => (isKnown(share) ? `${Math.floor(share * 1000 + 1e-6) / 10} %` : DASH);

export const rate = (value) => (isKnown(value) ? (value < 99.5 ? tenths : whole).format(value) : DASH);

/** The time of day of unix seconds. */
export function clock(unixSeconds) {
  const at = new Date(unixSeconds * 1000);
  const two = (value) => String(value).padStart(2, "0");
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

export const plural = (number, one, many = `${one}s`) => `${whole.format(number)} ${number === 1 ? one : many}`;

/** How late or early, with a word where it is late. */
export const slack = (value) => (isKnown(value) ? (value < 0 ? `${ms(-value)} late` : ms(value)) : DASH);
