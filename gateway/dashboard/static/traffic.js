// Totals as tiles, and requests and latency over time.

import { colour, draw, erase, plain } from "./charts.js";
import { el, empty, show } from "./dom.js";
import { count, dollars, milliseconds, NONE, percent, rounded, seconds } from "./format.js";

const MOST_EXPERTS = 10;
const FEWEST_STEPS = 20;

export function firstRequest() {
  const body = '{"model": "auto", "messages": [{"role": "user", "content": "What is 12 * 7?"}]}';
  return `curl ${location.origin}/v1/chat/completions \\\n` +
    `  -H 'content-type: application/json' \\\n  -d '${body}'`;
}

export function showTiles(node, stats) {
  show(node, [stats.totals, stats.to - stats.from], () => tiles(stats));
}

function tiles({ totals, from, to }) {
  const { cache, tokens, latency_ms: latency } = totals;
  const perMinute = totals.requests / Math.max(1, (to - from) / 60);
  const rate = perMinute >= 10 ? count(perMinute) : perMinute.toFixed(1);
  const failed = totals.errors > 0;
  return [
    tile("Requests", count(totals.requests), `${rate} a minute`),
    tile("Succeeded", totals.requests ? percent(totals.ok / totals.requests) : NONE,
      `${count(totals.errors)} errors, ${count(totals.fallbacks)} fallbacks`, failed),
    tile("Answer p50", milliseconds(latency.total?.p50),
      `p95 ${milliseconds(latency.total?.p95)}`),
    tile("First token p50", milliseconds(latency.first_token?.p50),
      `p95 ${milliseconds(latency.first_token?.p95)}`),
    tile("Routing p50", milliseconds(latency.routing?.p50),
      `p95 ${milliseconds(latency.routing?.p95)}`),
    tile("Cache hits", percent(cache.hit_rate), `saved ${seconds((cache.saved_ms || 0) / 1000)}`),
    tile("Tokens", rounded(tokens.prompt + tokens.completion),
      `${rounded(tokens.prompt)} in, ${rounded(tokens.completion)} out`),
    tile("Cost", dollars(totals.cost_usd),
      totals.requests ? `${dollars((totals.cost_usd / totals.requests) * 1000)} per 1000` : NONE),
  ];
}

function tile(name, value, more, bad = false) {
  return el("div", { class: bad ? "tile bad" : "tile" },
    el("span", { class: "name" }, name), el("span", { class: "big" }, value),
    el("span", { class: "muted small" }, more));
}

export function showTraffic(node, stats) {
  if (!stats.totals.requests) {
    erase(node, () => empty("No requests in this time. Send one:", firstRequest()));
    return;
  }
  const { at, shown } = grid(stats);
  const groups = busiest(stats.series_by_expert);
  const traces = groups.map(([expert, series]) => ({
    type: "bar", name: plain(expert), x: shown, y: aligned(at, series, (p) => p.requests, 0),
    marker: { color: expert === OTHERS ? "var(--muted)" : colour(expert) },
  }));
  draw(node, traces, { barmode: "stack", bargap: 0.15, showlegend: true,
    xaxis: span(stats), yaxis: { tickformat: "~s" } },
    `Requests over time, ${stats.totals.requests} in all`);
}

const OTHERS = "others";

function busiest(byExpert) {
  const total = ([, series]) => series.reduce((sum, point) => sum + point.requests, 0);
  const groups = Object.entries(byExpert).sort((a, b) => total(b) - total(a));
  if (groups.length <= MOST_EXPERTS) return groups;
  const rest = new Map();
  for (const [, series] of groups.slice(MOST_EXPERTS)) {
    for (const { at, requests } of series) rest.set(at, (rest.get(at) || 0) + requests);
  }
  const others = [...rest].map(([at, requests]) => ({ at, requests }));
  return [...groups.slice(0, MOST_EXPERTS), [OTHERS, others]];
}

export function showLatency(node, stats) {
  if (!stats.totals.requests) {
    erase(node, () => empty("Latency shows here as soon as there are requests."));
    return;
  }
  const { at, shown } = grid(stats);
  const longest = Math.max(0, ...stats.series.map((point) => point.latency_ms.total?.p95 || 0));
  const unit = longest >= 2000 ? { name: "s", ms: 1000 } : { name: "ms", ms: 1 };
  const line = (name, colour, dash, of) => ({
    type: "scatter", mode: "lines+markers", name, x: shown,
    y: aligned(at, stats.series, (point) => scaled(of(point.latency_ms), unit.ms), null),
    line: { color: colour, width: 2, dash }, marker: { color: colour, size: 4 },
  });
  const traces = [
    line("answer p95", "var(--c0)", "dot", (l) => l.total?.p95),
    line("answer p50", "var(--c0)", "solid", (l) => l.total?.p50),
    line("first token p50", "var(--c1)", "solid", (l) => l.first_token?.p50),
    line("routing p50", "var(--c2)", "solid", (l) => l.routing?.p50),
  ];
  draw(node, traces, { showlegend: true, xaxis: span(stats),
    yaxis: { ticksuffix: ` ${unit.name}`, hoverformat: ".3~g" } },
    `Latency over time, median answer ${milliseconds(stats.totals.latency_ms.total?.p50)}`);
}

function scaled(value, by) {
  return typeof value === "number" ? value / by : null;
}

// The steps of the series; a step without requests has no point of its own there.
function grid({ from, to, step_s: step }) {
  const at = [];
  for (let t = Math.floor(from / step) * step; t < to && at.length < 5000; t += step) at.push(t);
  return { at, shown: at.map(local) };
}

function aligned(at, series, value, missing) {
  const points = new Map(series.map((point) => [point.at, value(point)]));
  return at.map((t) => points.get(t) ?? missing);
}

// From the first request on, but never so close that a few steps fill the chart.
function span({ from, to, step_s: step, series }) {
  const busy = series.filter((point) => point.requests).map((point) => point.at);
  const first = Math.max(from, Math.min(...busy, to - FEWEST_STEPS * step) - step);
  return { range: [local(Math.floor(first / step) * step - step / 2), local(to)] };
}

// Plotly has no time zones: times are given to it as they stand on the reader's clock.
function local(at) {
  const date = new Date(at * 1000);
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, -1);
}
