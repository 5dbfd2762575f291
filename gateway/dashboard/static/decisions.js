// Recent decisions: which expert answered, of what category, and why.

import { colour } from "./charts.js";
import { badge, el, empty, named, show, table } from "./dom.js";
import { count, dollars, milliseconds, moment, NONE, percent, score, version } from "./format.js";
import { firstRequest } from "./traffic.js";

const opened = new Set();
const CACHE = { hit: "hit", miss: NONE, off: "off" };

export function showDecisions(node, decisions, filtered) {
  show(node, [decisions, [...opened]], () => {
    if (!decisions.length) {
      return filtered ? empty("No decision fits these filters.")
        : empty("No decisions yet. Send a prompt:", firstRequest());
    }
    return table("Recent decisions", columns(() => showDecisions(node, decisions, filtered)),
      decisions, (decision) => (opened.has(decision.id) ? details(decision) : null));
  });
}

function columns(redraw) {
  const toggle = (id) => {
    if (!opened.delete(id)) opened.add(id);
    redraw();
  };
  return [
    { title: "Time", cell: ({ id, at }) => el("button", {
      type: "button", class: "link", id: `decision-${id}`, "aria-expanded": opened.has(id),
      title: "show the whole decision", onclick: () => toggle(id),
    }, moment(at)) },
    { title: "Expert", cell: answeredBy },
    { title: "Category", name: true, cell: ({ category, general, category_probability: probability }) =>
      [category, general || !probability ? null : el("small", {}, percent(probability))] },
    { title: "Why", wide: true, cell: ({ reason }) => reason || NONE },
    { title: "Cache", cell: ({ cache }) => CACHE[cache] ?? cache },
    { title: "Result", cell: ({ outcome }) => result(outcome) },
    { title: "Routing", number: true, cell: ({ route_ms: ms }) => milliseconds(ms) },
    { title: "First token", number: true,
      cell: ({ outcome }) => milliseconds(outcome?.first_token_ms) },
    { title: "Answer", number: true, cell: ({ outcome }) => milliseconds(outcome?.total_ms) },
    { title: "Tokens", number: true, hint: "in and out", cell: ({ outcome }) => tokens(outcome) },
    { title: "Feedback", number: true, cell: ({ feedback }) => score(feedback?.score) },
  ];
}

function answeredBy({ expert, answered_by: answered, outcome }) {
  const one = answered || expert;
  const failed = (outcome?.failed || []).map(([name]) => name);
  return named(one, colour(one),
    failed.length ? el("small", { class: "alarm" }, `after ${failed.join(", ")} failed`) : null);
}

function result(outcome) {
  if (!outcome) return badge("running", "busy");
  const moods = { ok: "good", cancelled: "plain" };
  const mood = moods[outcome.status] || "bad";
  const code = outcome.http_status && outcome.http_status !== 200 ? ` ${outcome.http_status}` : "";
  return badge(`${outcome.status}${code}`, mood);
}

function tokens(outcome) {
  if (!outcome) return NONE;
  const { prompt_tokens: read, completion_tokens: written } = outcome;
  return read == null && written == null ? NONE : `${count(read)} / ${count(written)}`;
}

function details(decision) {
  const { ranking = [], scores = {}, ruled_out: ruledOut = {}, outcome } = decision;
  const facts = [
    ["Decision", decision.id],
    ["Composition", decision.composition
      ? `${decision.composition}, version ${version(decision.version)}` : "none: the expert was named"],
    ["Uncertainty", score(decision.uncertainty)],
    ["Waited for the encoder", milliseconds(decision.queue_ms)],
    ["Attempts", count(outcome?.attempts)],
    ["Cost", dollars(outcome?.cost_usd)],
    ["Error", outcome?.error],
    ["Key", decision.key],
    ["Prompt", decision.prompt],
  ].filter(([, value]) => value && value !== NONE);
  const failed = new Map(outcome?.failed || []);
  const candidates = ranking.map((expert, i) => [
    `${i + 1}. ${expert}`, scored(scores[expert]), failed.has(expert) ? `failed: ${failed.get(expert)}` : "",
  ]);
  const others = Object.entries(ruledOut).map(([expert, why]) =>
    [expert, scored(scores[expert]), `ruled out: ${why}`]);
  return el("div", { class: "detail" },
    el("dl", {}, facts.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]).flat()),
    table("Ranking", [
      { title: "Ranking", cell: ([expert]) => expert },
      { title: "Expected score", number: true, cell: ([, value]) => value },
      { title: "", wide: true, cell: ([, , why]) => why },
    ], [...candidates, ...others]));
}

function scored(value) {
  return score(typeof value === "object" && value !== null ? value.quality : value);
}
