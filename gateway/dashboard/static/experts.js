// Experts with their states and shares, categories, and the scores that routing expects of them.

import { colour } from "./charts.js";
import { badge, bar, el, empty, named, note, show, table } from "./dom.js";
import { count, dollars, milliseconds, moment, NONE, percent, score } from "./format.js";

const MOODS = {
  ready: "good", registered: "plain", starting: "busy", verifying: "busy", parked: "plain",
  draining: "busy", failed: "bad",
};

export function showExperts(node, experts, stats, quality) {
  show(node, [experts, stats?.by_expert, quality], () => {
    const used = stats?.by_expert || {};
    const known = experts.map((expert) => ({ expert, id: expert.id, figures: used[expert.id] }));
    const gone = Object.entries(used).filter(([id]) => !experts.some((e) => e.id === id))
      .map(([id, figures]) => ({ expert: null, id, figures }));
    const rows = [...known, ...gone].sort(byRequests);
    if (!rows.length) {
      return empty("No experts are registered. Register one:",
        "coe experts add --id mine --kind remote --url http://127.0.0.1:8001 --served-name my-model");
    }
    rows.forEach(({ id }) => colour(id));
    return table("Experts", expertColumns(quality), rows);
  });
}

const byRequests = (a, b) =>
  (b.figures?.requests || 0) - (a.figures?.requests || 0) || a.id.localeCompare(b.id);

function expertColumns(quality) {
  const expected = Object.fromEntries(
    (quality?.overall || []).map((value, i) => [quality.experts[i], value]));
  return [
    { title: "Expert", cell: ({ id, expert }) =>
      named(id, colour(id), expert ? el("small", {}, describe(expert)) : null) },
    { title: "State", wide: true, cell: ({ id, expert }) => expertState(id, expert) },
    { title: "Share", cell: ({ id, figures }) =>
      bar(figures?.share, percent(figures?.share ?? 0), colour(id)) },
    ...figureColumns(),
    { title: "Expected", number: true, hint: "expected score over all prompts, by the live router",
      cell: ({ id }) => score(expected[id]) },
    { title: "Feedback", number: true, hint: "mean score of the feedback and how many gave one",
      cell: ({ figures }) => feedback(figures) },
  ];
}

function figureColumns() {
  const latency = (figures, what, quantile) =>
    milliseconds(figures?.latency_ms?.[what]?.[quantile]);
  const number = (title, cell, hint) =>
    ({ title, number: true, hint, cell: ({ figures }) => cell(figures) });
  return [
    number("Requests", (f) => count(f?.requests ?? 0)),
    number("Errors", (f) => alarming(f?.errors)),
    number("Fallbacks", (f) => count(f?.fallbacks ?? 0), "requests that came after others failed"),
    number("First token", (f) => latency(f, "first_token", "p50"), "median (p50)"),
    number("Answer", (f) => latency(f, "total", "p50"), "median (p50)"),
    number("p95", (f) => latency(f, "total", "p95"), "95 % of the answers came within"),
    number("Tokens", (f) => (f ? count(f.tokens.prompt + f.tokens.completion) : NONE)),
    number("Cost", (f) => dollars(f?.cost_usd)),
  ];
}

function alarming(errors) {
  return errors ? el("span", { class: "alarm" }, count(errors)) : "0";
}

function feedback(figures) {
  const { mean, n } = figures?.feedback || {};
  return n ? [score(mean), el("small", {}, ` of ${count(n)}`)] : NONE;
}

function describe({ kind, base, params_b: params }) {
  const size = params >= 1 ? `${params}B` : params ? `${Math.round(params * 1000)}M` : "";
  return [base ? `${kind} on ${base}` : kind, size].filter(Boolean).join(", ");
}

function expertState(id, expert) {
  if (!expert) {
    return id === "none" ? note("requests that nobody answered") : badge("not registered");
  }
  const state = expert.removing ? "removing" : expert.drained ? "drained" : expert.state;
  const mood = expert.removing || expert.drained ? "busy" : MOODS[expert.state] || "plain";
  const retry = expert.retry_at > Date.now() / 1000 && expert.state !== "ready"
    ? ` Next try at ${moment(expert.retry_at)}.` : "";
  return [badge(state, mood),
    expert.reason ? el("small", { class: "reason" }, `${expert.reason}.`.replace(/\.\.$/, ".") + retry) : null];
}

export function showCategories(node, stats) {
  show(node, stats.by_category, () => {
    const rows = Object.entries(stats.by_category).map(([id, figures]) => ({ id, figures }))
      .sort(byRequests);
    if (!rows.length) return empty("Categories show here as soon as prompts were routed.");
    return table("Categories", [
      { title: "Category", cell: ({ id }) => [el("b", {}, id), explain(id)] },
      { title: "Share", cell: ({ figures }) => bar(figures.share, percent(figures.share)) },
      { title: "Requests", number: true, cell: ({ figures }) => count(figures.requests) },
      { title: "Errors", number: true, cell: ({ figures }) => alarming(figures.errors) },
      { title: "Answer", number: true, hint: "median",
        cell: ({ figures }) => milliseconds(figures.latency_ms.total?.p50) },
      { title: "Feedback", number: true, cell: ({ figures }) => feedback(figures) },
    ], rows);
  });
}

const MEANINGS = {
  general: "the router was unsure", direct: "the request named its expert",
  none: "not routed",
};

function explain(category) {
  const meaning = Object.hasOwn(MEANINGS, category) ? MEANINGS[category] : null;
  return meaning ? el("small", {}, meaning) : null;
}

export function showQuality(node, tables) {
  show(node, tables, () => {
    if (!tables.length) return empty("No composition is live: see below.");
    return tables.map(({ composition, summary, ...scores }) => el("div", { class: "quality" },
      tables.length > 1 ? el("h3", {}, composition) : null,
      scores.expected ? heat(scores) : note("This router keeps no table of scores."),
      heldOut(summary)));
  });
}

function heat({ experts, categories, expected, overall }) {
  const rows = [...categories.map((name, i) => [name, expected[i]]), ["over all prompts", overall]];
  const columns = [
    { title: "Category", cell: ([name]) => name },
    ...experts.map((expert, i) => ({
      title: expert, number: true,
      cell: ([, values]) => el("span", {
        class: values[i] === Math.max(...values) ? "heat best" : "heat",
        "--share": `${Math.round(values[i] * 100)}%`,
      }, score(values[i])),
    })),
  ];
  return table("Expected score of each expert in each category", columns, rows);
}

// Figures of prompts that the router had not seen when it was judged on them.
function heldOut(summary) {
  const { routed, best_single: best, oracle, random } = summary;
  const accuracy = summary.category_accuracy;
  if (routed === undefined && accuracy === undefined) return null;
  const lines = [
    ["random expert", random, "var(--muted)"],
    [`best single (${summary.best_single_expert})`, best, "var(--muted)"],
    ["routed", routed, "var(--accent)"],
    ["oracle", oracle, "var(--muted)"],
  ].filter(([, value]) => typeof value === "number");
  return el("div", { class: "held-out" },
    el("h3", {}, "On held-out prompts"),
    lines.map(([name, value, shade]) => el("div", { class: "measure" },
      el("span", {}, name), bar(value, score(value), shade))),
    accuracy === undefined ? null
      : note(`Category right: ${percent(accuracy)}. `,
        summary.gain_low === undefined ? null
          : `Gain over the best single expert: ${score(summary.gain)} ` +
            `(95 %: ${score(summary.gain_low)} to ${score(summary.gain_high)}).`));
}
