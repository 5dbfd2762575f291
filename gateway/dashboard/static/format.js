// Numbers, times and names as people read them. A dash stands for what is not known.

export const NONE = "–";

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const hours = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const days = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

export function count(value) {
  if (!isNumber(value)) return NONE;
  return value >= 100_000 ? short.format(value) : whole.format(Math.round(value));
}

export function rounded(value) {
  return isNumber(value) && value >= 10_000 ? short.format(value) : count(value);
}

export function percent(value) {
  if (!isNumber(value)) return NONE;
  const hundred = value * 100;
  if (hundred > 99 && hundred < 100) return `${Math.min(99.9, hundred).toFixed(1)} %`;
  return `${hundred.toFixed(hundred > 0 && hundred < 9.95 ? 1 : 0)} %`;
}

export function score(value) {
  return isNumber(value) ? value.toFixed(2) : NONE;
}

export function milliseconds(value) {
  if (!isNumber(value)) return NONE;
  if (value < 0.095) return value > 0 ? "<0.1 ms" : "0 ms";
  if (value < 9.95) return `${value.toFixed(1)} ms`;
  if (value < 999.5) return `${value.toFixed(0)} ms`;
  return seconds(value / 1000);
}

export function seconds(value) {
  if (!isNumber(value)) return NONE;
  if (value < 1) return milliseconds(value * 1000);
  if (value < 99.5) return `${value.toFixed(value < 10 ? 2 : 1)} s`;
  if (value < 5400) return `${Math.round(value / 60)} min`;
  if (value < 129_600) return `${(value / 3600).toFixed(1)} h`;
  return `${Math.round(value / 86_400)} d`;
}

export function dollars(value) {
  if (!isNumber(value)) return NONE;
  if (value === 0) return "$0";
  if (value < 0.00001) return "<$0.00001";
  return `$${value < 0.1 ? value.toPrecision(2).replace(/e.*$/, "") : value.toFixed(2)}`;
}

export function moment(at) {
  if (!isNumber(at) || at <= 0) return NONE;
  const date = new Date(at * 1000);
  const today = date.toDateString() === new Date().toDateString();
  return today ? hours.format(date) : `${days.format(date)} ${hours.format(date).slice(0, 5)}`;
}

export function version(text) {
  return text ? String(text).slice(0, 10) : NONE;
}
