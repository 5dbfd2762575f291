// Trainings, compositions with their versions, and the gateway workers.

import { badge, bar, el, empty, note, show, table } from "./dom.js";
import { count, moment, percent, score, seconds, version } from "./format.js";

const MOST = 8;
const MOODS = { queued: "plain", running: "busy", succeeded: "good", failed: "bad", cancelled: "plain" };

export function showTrainings(node, trainings) {
  show(node, trainings, () => {
    if (!trainings.length) {
      return empty("No trainings yet. Teach the router with labelled prompts:",
        "coe datasets upload outcomes.jsonl\ncoe trainings start --dataset ID --promote --wait");
    }
    return [table("Trainings", [
      { title: "Training", cell: (t) => [el("b", {}, t.composition),
        el("small", {}, t.id), el("small", {}, moment(t.created_at))] },
      { title: "State", cell: progress },
      { title: "Result", wide: true, cell: result },
    ], trainings.slice(0, MOST)), rest(trainings, "trainings")];
  });
}

function progress({ state, progress: { share, lines = [] }, started_at: start, finished_at: end }) {
  const running = state === "running";
  const took = start && end ? el("small", {}, `took ${seconds(end - start)}`) : null;
  return [badge(state, MOODS[state] || "plain"),
    running ? bar(share, percent(share)) : took,
    running && lines.length ? el("small", {}, lines.at(-1)) : null];
}

function result({ state, report, version: made, error, notes = [] }) {
  if (state === "failed") return el("span", { class: "alarm" }, error || "no reason was given");
  if (state !== "succeeded") return el("small", {}, error || "");
  return [
    report.routed === undefined || report.routed === null ? null : el("span", {},
      el("b", {}, score(report.routed)), ` routed, ${score(report.best_single)} best single` +
      ` (${report.best_single_expert}), ${score(report.oracle)} oracle`),
    report.category_accuracy === undefined ? null
      : el("small", {}, `category right ${percent(report.category_accuracy)}, ` +
        `${count(report.n_prompts)} prompts`),
    made ? el("small", {}, `version ${version(made)}`) : null,
    [...new Set([...notes, ...(report.warnings || [])])].map((line) =>
      el("small", { class: "warn" }, line)),
  ];
}

function rest(items, what) {
  return items.length > MOST ? note(`and ${count(items.length - MOST)} older ${what}`) : null;
}

export function showCompositions(node, compositions) {
  show(node, compositions, () => {
    if (!compositions.length) {
      return empty("No composition yet. Train one or import one:",
        "coe trainings start --dataset ID --promote --wait\ncoe compositions import DIR");
    }
    return compositions.map((composition) => el("div", { class: "composition" },
      el("h3", {}, composition.name), liveLine(composition), history(composition)));
  });
}

function liveLine({ live, changed_at: since }) {
  if (!live) return note("Nothing is live: requests for it are refused until one is promoted.");
  return note(`${count(live.experts.length)} experts, ${count(live.categories.length)} categories, ` +
    `quality weight ${live.quality_weight}${since ? `, live since ${moment(since)}` : ""}.`);
}

function history({ live, former, versions }) {
  const ranks = new Map(former.map((name, i) => [name, i + 1]));
  const standing = (name) => {
    if (name === live?.version) return badge("live", "good");
    return ranks.has(name) ? badge(`live before${ranks.get(name) > 1 ? ` (${ranks.get(name)} back)` : ""}`)
      : badge("not promoted");
  };
  return [table("Versions", [
    { title: "Version", cell: (v) => el("code", { title: v.version }, version(v.version)) },
    { title: "", cell: (v) => standing(v.version) },
    { title: "Made", cell: (v) => [moment(v.created_at), el("small", {}, `by ${maker(v)}`)] },
    { title: "Routed", number: true, hint: "held-out score", cell: (v) => score(v.summary?.routed) },
    { title: "Best single", number: true, hint: "held-out score of the best single expert",
      cell: (v) => score(v.summary?.best_single) },
  ], versions.slice(0, MOST)), rest(versions, "versions")];
}

function maker({ source, training }) {
  return { config: "the configuration", import: "an import" }[source] ||
    (training ? `training ${training}` : source);
}

const SILENT_S = 10;

export function showWorkers(node, workers) {
  show(node, workers, () => {
    if (!workers.length) return empty("No gateway worker has sent a heartbeat yet.");
    return table("Gateway workers", [
      { title: "Worker", cell: (w) => [el("b", {}, w.id), el("small", {}, `process ${w.pid}`)] },
      { title: "State", cell: (w) => {
        if (w.silent_s > SILENT_S) return badge(`silent for ${seconds(w.silent_s)}`, "bad");
        return w.current ? badge("serving the latest state", "good") : badge("catching up", "busy");
      } },
      { title: "Started", cell: (w) => moment(w.started_at) },
      { title: "In flight", number: true,
        cell: (w) => count(Object.values(w.in_flight).reduce((sum, n) => sum + n, 0)) },
    ], workers);
  });
}
