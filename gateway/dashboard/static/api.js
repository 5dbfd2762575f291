// The admin API with the key that the person typed. The key lives in this tab's session alone.

const KEY = "composer.key";
const DEADLINE_MS = 8000;

export class Unreachable extends Error {}

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  get needsKey() {
    return this.status === 401 || this.status === 403;
  }
}

export function keepKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

export async function get(path, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value != null);
  const query = new URLSearchParams(given).toString();
  const key = sessionStorage.getItem(KEY);
  let response, body;
  try {
    response = await fetch(query ? `${path}?${query}` : path, {
      headers: key ? { authorization: `Bearer ${key}` } : {},
      cache: "no-store",
      credentials: "omit",
      redirect: "error",
      signal: AbortSignal.timeout(DEADLINE_MS),
    });
    body = await response.text();
  } catch {
    throw new Unreachable(`no answer from ${location.origin}`);
  }
  const parsed = parse(body);
  if (response.ok && parsed !== null) return parsed;
  // Readiness answers 503 with a report: that is news, not a failure.
  if (parsed?.status && response.status === 503) return parsed;
  const message = parsed?.error?.message;
  throw new Refused(response.status, message || `${path} answered ${response.status}`);
}

function parse(body) {
  try {
    return JSON.parse(body);
  } catch {
    return null;
  }
}
