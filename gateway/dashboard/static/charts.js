// Charts by Plotly.js in the page's own colours, redrawn when those change.

const PALETTE = 10;
const positions = new Map();
const drawn = new Map();

// Colours follow the order in which experts were first seen, so that they stay.
export function colour(expert) {
  if (!positions.has(expert)) positions.set(expert, positions.size);
  return `var(--c${positions.get(expert) % PALETTE})`;
}

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const resolved = (colour) => style(colour.replace(/^var\(|\)$/g, ""));

function layout(extra) {
  const axis = {
    gridcolor: style("--line"), linecolor: style("--line"), zeroline: false, fixedrange: true,
    tickfont: { color: style("--muted") }, automargin: true,
  };
  return {
    ...extra,
    font: { family: style("--font"), size: 12, color: style("--text") },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 44, r: 8, t: 8, b: 24 }, height: 250, hovermode: "x unified",
    hoverlabel: { bgcolor: style("--card"), bordercolor: style("--line"),
      font: { color: style("--text") } },
    legend: { orientation: "h", y: 1.03, yanchor: "bottom", x: 0, font: { color: style("--muted") } },
    xaxis: { ...axis, type: "date", showgrid: false, ...extra.xaxis },
    yaxis: { ...axis, rangemode: "tozero", ...extra.yaxis },
  };
}

export function draw(node, traces, extra, description) {
  drawn.set(node, [traces, extra, description]);
  node.setAttribute("role", "img");
  node.setAttribute("aria-label", description);
  if (!window.Plotly) {
    node.textContent = "Plotly.js did not load: the charts are missing.";
    return;
  }
  if (!node.classList.contains("js-plotly-plot")) node.replaceChildren();
  node.erased = false;
  const coloured = traces.map((trace) => ({
    ...trace,
    ...(trace.line && { line: { ...trace.line, color: resolved(trace.line.color) } }),
    ...(trace.marker && { marker: { ...trace.marker, color: resolved(trace.marker.color) } }),
  }));
  const options = { displayModeBar: false, responsive: true, showTips: false };
  window.Plotly.react(node, coloured, layout(extra), options);
}

export function erase(node, build) {
  if (node.erased) return;
  node.erased = true;
  if (node.classList.contains("js-plotly-plot")) window.Plotly.purge(node);
  drawn.delete(node);
  node.removeAttribute("role");
  node.removeAttribute("aria-label");
  node.replaceChildren(build());
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const [node, what] of drawn) draw(node, ...what);
});

// Plotly reads names as markup of its own (<b>, <a>, ...): keep it from seeing any.
export function plain(name) {
  const short = name.length > 40 ? `${name.slice(0, 39)}…` : name;
  return short.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
