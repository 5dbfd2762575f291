// Building the page. Whatever comes from the API becomes text, never markup.

export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) node.style.setProperty(name, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...nodes(children));
  return node;
}

function nodes(children) {
  const there = children.flat(Infinity).filter((child) => child !== null && child !== undefined);
  return there.map((child) =>
    (child instanceof Node ? child : document.createTextNode(String(child))));
}

// Build a part of the page anew when what it shows has changed. The focus stays where it was.
export function show(node, shown, build) {
  const signature = JSON.stringify(shown);
  if (node.shown === signature) return;
  node.shown = signature;
  const focused = node.contains(document.activeElement) ? document.activeElement.id : "";
  node.replaceChildren(...nodes([build()]));
  if (focused) document.getElementById(focused)?.focus();
}

// `columns` are {title, cell(row), number, hint, wide, name}; `after(row)` may give a row of details.
export function table(caption, columns, rows, after = () => null) {
  const head = columns.map(({ title, number, hint }) =>
    el("th", { scope: "col", class: number && "number", title: hint }, title));
  const body = rows.flatMap((row) => {
    const cells = columns.map(({ cell, number, wide, name }) =>
      el("td", { class: [number && "number", wide && "wide", name && "name"].filter(Boolean).join(" ") || null },
        cell(row)));
    const details = after(row);
    return details === null
      ? [el("tr", {}, cells)]
      : [el("tr", { class: "open" }, cells),
         el("tr", { class: "details" }, el("td", { colspan: columns.length }, details))];
  });
  return el("table", {}, el("caption", { class: "hidden" }, caption),
    el("thead", {}, el("tr", {}, head)), el("tbody", {}, body));
}

export function bar(share, label, colour = "var(--accent)") {
  const width = `${Math.max(0, Math.min(1, share || 0)) * 100}%`;
  return el("span", { class: "share" },
    el("span", { class: "track", "aria-hidden": "true" },
      el("span", { class: "fill", "--width": width, "--colour": colour })),
    el("span", { class: "value" }, label));
}

export function badge(label, mood = "plain") {
  return el("span", { class: `badge ${mood}` }, label);
}

export function note(...children) {
  return el("p", { class: "muted small" }, children);
}

// What to do where there is nothing to show yet.
export function empty(what, command = null) {
  return el("div", { class: "empty" }, el("p", {}, what),
    command === null ? null : el("pre", {}, el("code", {}, command)));
}

// An expert by name and colour, with a small line below.
export function named(name, colour, below = null) {
  return el("span", { class: "named" }, el("span", { class: "dot", "--colour": colour }),
    el("span", {}, el("b", {}, name), below));
}
