// The page: asks for everything every few seconds while somebody looks, and shows it.

import { get, hasKey, keepKey, Refused, Unreachable } from "./api.js";
import { colour } from "./charts.js";
import { showCompositions, showTrainings, showWorkers } from "./control.js";
import { showDecisions } from "./decisions.js";
import { el, note, show } from "./dom.js";
import { showCategories, showExperts, showQuality } from "./experts.js";
import { moment } from "./format.js";
import { showLatency, showTiles, showTraffic } from "./traffic.js";

const EVERY_MS = 4000;
const RANGES = [["15 min", 900], ["1 hour", 3600], ["6 hours", 21_600], ["24 hours", 86_400],
  ["7 days", 604_800]];
const PAGE = 20;
const MOST_DECISIONS = 200;
const MOST_COMPOSITIONS = 5;

const $ = (id) => document.getElementById(id);
const chosen = { range: 3600, decisions: PAGE, expert: "", category: "" };
let timer = null;
let running = false;
let again = false;
let locked = false;

const list = async (path, parameters) => (await get(path, parameters)).data;

async function compositions() {
  const all = await list("/admin/v1/compositions");
  return Promise.all(all.slice(0, MOST_COMPOSITIONS).map(async (summary) => {
    const whole = await get(`/admin/v1/compositions/${summary.name}`);
    return { ...whole, former: whole.former || summary.former || [] };
  }));
}

const SOURCES = {
  health: () => get("/health/ready"),
  stats: () => get("/admin/v1/stats", { from: -chosen.range }),
  experts: () => list("/admin/v1/experts"),
  quality: () => list("/admin/v1/quality"),
  decisions: () => list("/admin/v1/decisions",
    { limit: chosen.decisions, expert: chosen.expert, category: chosen.category }),
  trainings: () => list("/admin/v1/trainings"),
  compositions,
  workers: () => list("/admin/v1/workers"),
};

async function refresh() {
  if (running) {
    again = true;
    return;
  }
  running = true;
  clearTimeout(timer);
  try {
    do {
      again = false;
      const names = Object.keys(SOURCES);
      const answers = await Promise.allSettled(names.map((name) => SOURCES[name]()));
      render(Object.fromEntries(names.map((name, i) => [name, answers[i]])));
    } while (again);
  } finally {
    running = false;
    clearTimeout(timer);
    if (!document.hidden && !locked) timer = setTimeout(refresh, EVERY_MS);
  }
}

function render(answers) {
  const errors = Object.values(answers).filter((a) => a.status === "rejected").map((a) => a.reason);
  const refusal = errors.find((error) => error instanceof Refused && error.needsKey);
  const away = answers.health.status === "rejected" && answers.health.reason instanceof Unreachable;
  showHealth(answers, away, refusal);
  document.body.classList.toggle("stale", away);
  if (away) return;
  if (refusal) {
    askForKey(refusal);
    return;
  }
  $("updated").textContent = `updated ${moment(Date.now() / 1000)}`;
  const value = (name) => (answers[name].status === "fulfilled" ? answers[name].value : null);
  part(["tiles", "traffic", "latency", "categories"], answers.stats, (stats) => {
    (value("experts") || []).forEach(({ id }) => colour(id));
    showTiles($("tiles"), stats);
    showTraffic($("traffic"), stats);
    showLatency($("latency"), stats);
    showCategories($("categories"), stats);
  });
  part(["experts"], answers.experts, (experts) =>
    showExperts($("experts"), experts, value("stats"), (value("quality") || [])[0]));
  part(["quality"], answers.quality, (tables) => showQuality($("quality"), tables));
  part(["decisions"], answers.decisions, (decisions) => {
    showDecisions($("decisions"), decisions, Boolean(chosen.expert || chosen.category));
    $("more").hidden = decisions.length < chosen.decisions || chosen.decisions >= MOST_DECISIONS;
  });
  part(["trainings"], answers.trainings, (trainings) => showTrainings($("trainings"), trainings));
  part(["compositions"], answers.compositions, (all) => showCompositions($("compositions"), all));
  part(["workers"], answers.workers, (workers) => showWorkers($("workers"), workers));
  choices(value("stats"), value("experts"));
}

// One part of the page that can't be had must not take the others with it.
function part(ids, answer, render) {
  if (answer.status === "fulfilled") {
    for (const id of ids) $(id).querySelector(":scope > .trouble")?.remove();
    try {
      render(answer.value);
      return;
    } catch (error) {
      console.error(error);
      answer = { reason: new Error("the answer could not be shown") };
    }
  }
  for (const id of ids) {
    const node = $(id);
    const trouble = node.querySelector(":scope > .trouble");
    const words = `Not up to date: ${answer.reason.message}`;
    if (trouble) trouble.textContent = words;
    else node.prepend(el("p", { class: "trouble" }, words));
  }
}

function showHealth(answers, away, refusal) {
  const health = answers.health.status === "fulfilled" ? answers.health.value : null;
  const pill = $("health");
  const status = away ? "unreachable" : health?.status || "unknown";
  const title = refusal ? "locked" : status;
  pill.textContent = status;
  pill.className = `badge ${{ ready: "good", starting: "busy", degraded: "warn" }[status] || "bad"}`;
  const lines = away
    ? [`The gateway at ${location.origin} can't be reached. Below is what was last known; trying ` +
       `again every ${EVERY_MS / 1000} seconds.`]
    : troubles(health, answers, refusal);
  const banner = $("banner");
  show(banner, [title, lines], () => [
    el("strong", {}, `${title[0].toUpperCase()}${title.slice(1)}`),
    el("ul", {}, lines.map((line) => el("li", {}, line)))]);
  banner.className = away || status === "unknown" ? "bad" : "warn";
  banner.hidden = lines.length === 0;
}

function troubles(health, answers, refusal) {
  if (health === null) return ["The gateway does not say how it is."];
  const lines = refusal ? ["An admin key is needed to see more: press “Admin key”."] : [];
  if (health.state === "away") {
    lines.push("The shared state (Redis) is away: prompts are answered from the last snapshot, " +
      "registrations and statistics wait.");
  }
  const reasons = new Map((answers.experts.value || []).map((e) => [e.id, e.reason]));
  const experts = health.status === "ready" ? {} : health.experts || {};
  for (const [expert, state] of Object.entries(experts)) {
    const why = reasons.get(expert);
    const more = why && !String(state).includes(why) ? ` (${why})` : "";
    if (state !== "ready") lines.push(`Expert ${expert}: ${state}${more}`);
  }
  if (health.status === "starting" && !lines.length) {
    lines.push("No expert can answer yet: no composition is live, or its experts are starting.");
  }
  return lines.length || health.status === "ready" ? lines : [`The gateway says that it is ${health.status}.`];
}

function choices(stats, experts) {
  const ids = [...(experts || []).map((e) => e.id), ...Object.keys(stats?.by_expert || {})];
  options($("by-expert"), ids, "expert");
  options($("by-category"), Object.keys(stats?.by_category || {}), "category");
}

function options(select, names, field) {
  const known = [...new Set([...names, chosen[field]])].filter(Boolean).sort();
  show(select, known, () => ["", ...known].map((name) =>
    el("option", { value: name, selected: name === chosen[field] }, name || "all")));
}

// Nothing is asked of the gateway while it waits for a key.
function askForKey({ status, message }) {
  locked = true;
  clearTimeout(timer);
  const unknown = hasKey() ? "The gateway does not know this key."
    : "This gateway shows its statistics to holders of an admin key.";
  openDialog(status === 401 ? unknown : message);
}

function openDialog(why) {
  $("ask-why").textContent = why;
  $("ask-key").value = "";
  if (!$("ask").open) $("ask").showModal();
}

function useKey() {
  keepKey($("ask-key").value.trim());
  locked = false;
  refresh();
}

function setUp() {
  for (const [label, length] of RANGES) {
    const input = el("input", { type: "radio", name: "range", value: length,
      checked: length === chosen.range });
    input.addEventListener("change", () => {
      chosen.range = length;
      refresh();
    });
    $("range").append(el("label", {}, input, el("span", {}, label)));
  }
  for (const field of ["expert", "category"]) {
    $(`by-${field}`).addEventListener("change", (event) => {
      chosen[field] = event.target.value;
      chosen.decisions = PAGE;
      refresh();
    });
  }
  $("more").addEventListener("click", () => {
    chosen.decisions = Math.min(MOST_DECISIONS, chosen.decisions + 2 * PAGE);
    refresh();
  });
  $("key").addEventListener("click", () => openDialog(""));
  $("ask-cancel").addEventListener("click", () => $("ask").close());
  $("ask-form").addEventListener("submit", useKey);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && !locked) refresh();
  });
  $("tiles").append(note("Loading…"));
  refresh();
}

setUp();
