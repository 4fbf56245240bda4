/* The frame: header, tabs, selection by the URL's fragment, keys. */

const views = [
  ["tree", "Tree", treeView],
  ["curves", "Curves", curvesView],
  ["timeline", "Timeline", timelineView],
  ["cost", "Cost", costView],
  ["figures", "Figures", figuresView],
  ["log", "Log", logView],
].filter((view) => view[0] !== "figures" || report.figures.length);
const selection = { id: null };
let current = "tree";

function card(name, value, note, kind) {
  return h("div", { class: "card" + (kind ? " " + kind : "") }, h("dt", {}, name), h("dd", {}, value, note ? h("small", {}, note) : null));
}

function spreadParts(side) {
  return [metric(side.mean), side.sd === null ? null : h("span", { class: "spread" }, " \u00b1 " + metric(side.sd))];
}

function gainText(rows) {
  const gain = report.result.gain[rows];
  if (!gain) return null;
  const sign = report.header.metric.maximize ? gain.value : -gain.value;
  const verdict = gain.beyond ? "beyond the seed spread" : gain.value <= 0 ? "no gain" : gain.spread === null ? "spread unknown" : "within the seed spread";
  return { text: signed(sign), verdict };
}

function resultCards() {
  const { best, first_good: first } = report.result;
  const head = report.header;
  const found = head.best.id ? h("a", { href: "#node-" + encodeURIComponent(head.best.id) }, metric(head.best.value)) : metric(head.best.value);
  const cards = [card("Best on validation", found, "one run, chosen by this score", "main")];
  const seeds = (side) => (side && side.n !== null ? side.n + " seeds" : "seeds");
  if (best.val) cards.push(card("Seed mean", spreadParts(best.val), seeds(best.val) + ", validation"));
  if (best.test) cards.push(card("Test", spreadParts(best.test), seeds(best.test) + ", rows the search never saw"));
  const gains = [["test", "test"], ["val", "validation"]].map(([rows, name]) => ({ ...gainText(rows), rows, name })).filter((gain) => gain.text);
  if (gains.length) {
    const [gain, other] = gains;
    const second = other ? "; " + other.name + " " + other.text + (other.verdict === gain.verdict ? "" : " (" + other.verdict + ")") : "";
    const note = gain.name + ", " + gain.verdict + ", was " + withSpread(first[gain.rows]) + second;
    cards.push(card("Against first good", gain.text, note, gain.verdict === "beyond the seed spread" ? "gain" : ""));
  }
  return cards;
}

function header() {
  const head = report.header;
  const failed = head.failed + " failed" + (head.planted ? ", " + head.planted + " of them planted" : "") + (head.running ? ", " + head.running + " running" : "");
  const tokens = head.tokens.prompt + head.tokens.completion;
  const cost = head.unpriced && !head.cost_usd ? "no price" : money(head.cost_usd) + (head.unpriced ? " + ?" : "");
  const many = (number, noun) => number && number + " " + noun + (number === 1 ? "" : "s");
  const troubles = [many(head.warnings, "warning"), many(head.degradations, "degradation"), many(head.resumes, "resume")].filter(Boolean).join(", ");
  const started = head.started_at === null ? "" : new Date(head.started_at * 1000).toISOString().replace("T", " ").slice(0, 16) + " UTC";
  document.getElementById("top").append(
    h("div", { class: "title" }, h("h1", {}, head.title || head.run || "Run"), h("span", { class: "status " + head.status }, head.status)),
    h("p", { class: "sub" }, [head.job, head.run, head.seed === null ? "" : "seed " + head.seed, started].filter(Boolean).join(" \u00b7 ")),
    head.error ? h("p", { class: "error" }, head.error) : "",
    h("dl", { class: "cards" }, resultCards(),
      card("Nodes", String(head.nodes), head.good + " good, " + failed), card("Time", duration(head.wall_s), troubles || "no interruption"),
      card("Tokens", count(tokens), count(head.tokens.prompt) + " in, " + count(head.tokens.completion) + " out, " + head.calls + " calls"), card("Cost", cost, head.models.map((model) => model.label).join(", "))),
    ...[head.disclosure, head.isolation].filter(Boolean).map((text) => h("p", { class: "disclosure" }, text))
  );
}

function tabs() {
  const bar = document.getElementById("tabs");
  for (const [id, name] of views) {
    const extra = id === "log" && report.log.entries.length ? " (" + report.log.entries.length + ")" : "";
    bar.append(h("button", { type: "button", role: "tab", id: "tab-" + id, "aria-controls": "main", on: { click: () => go(id) } }, name + extra));
  }
  bar.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const at = views.findIndex((view) => view[0] === current);
    go(views[(at + step + views.length) % views.length][0]);
    document.getElementById("tab-" + current).focus();
  });
}

function drawView() {
  const [, , build] = views.find((view) => view[0] === current);
  document.getElementById("main").replaceChildren(build());
  if (current === "tree") {
    drawTree();
    drawPanel();
  }
}

function show(id) {
  current = id;
  for (const [name] of views) {
    const tab = document.getElementById("tab-" + name);
    tab.setAttribute("aria-selected", String(name === id));
    tab.tabIndex = name === id ? 0 : -1;
  }
  drawView();
}

function go(id) {
  if (id === "tree" && selection.id) select(selection.id);
  else location.hash = "#" + id;
  show(id);
}

function drawPanel() {
  const panel = document.getElementById("panel");
  const node = byId.get(selection.id);
  panel.replaceChildren(...(node ? nodePanel(node) : [h("p", { class: "empty" }, "Choose a node to see its plan, its program and what came of it.")]));
  panel.scrollTop = 0;
}

function markSelection(move) {
  let first = null;
  let chosen = null;
  for (const group of document.querySelectorAll("#lanes [data-node]")) {
    const own = group.getAttribute("data-node") === selection.id;
    group.setAttribute("aria-selected", String(own));
    group.setAttribute("tabindex", own ? "0" : "-1");
    first = first || group;
    if (own) chosen = group;
  }
  if (!chosen && first) first.setAttribute("tabindex", "0");
  if (!chosen) return;
  const frame = chosen.closest(".scroll");
  const offset = chosen.getBoundingClientRect().left - frame.getBoundingClientRect().left;
  if (offset < 0 || offset > frame.clientWidth - COLUMN) frame.scrollLeft += offset - frame.clientWidth / 2;
  if (move) chosen.scrollIntoView({ block: "nearest", inline: "nearest" });
  if (selection.focus) chosen.focus({ preventScroll: true });
}

/* The fragment is the one place that holds the selection, so that Back and shared links work. */
function select(id, focus) {
  selection.focus = Boolean(focus);
  const wanted = "#node-" + encodeURIComponent(id);
  if (location.hash === wanted) follow();
  else location.hash = wanted;
}

function follow() {
  const view = views.find((item) => "#" + item[0] === location.hash);
  if (view) {
    if (view[0] !== current) show(view[0]);
    return;
  }
  const found = /^#node-(.+)$/.exec(location.hash);
  let id = null;
  try {
    id = found ? decodeURIComponent(found[1]) : null;
  } catch {
    id = null;
  }
  if (!byId.has(id)) return;
  selection.id = id;
  if (current !== "tree") show("tree");
  else {
    if (!document.querySelector('#lanes [data-node="' + CSS.escape(id) + '"]')) drawTree();
    drawPanel();
  }
  markSelection(true);
  selection.focus = false;
}

function start() {
  header();
  tabs();
  const wanted = [report.header.best.id, ...report.stages.map((stage) => stage.best)];
  selection.id = wanted.find((id) => byId.has(id)) ?? null;
  show("tree");
  follow();
  window.addEventListener("hashchange", follow);
  let waiting = false;
  window.addEventListener("resize", () => {
    if (waiting || !["curves", "timeline"].includes(current)) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      drawView();
    });
  });
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      if (current !== "tree") show("tree");
      document.getElementById("search").focus();
    }
    if (event.key === "Escape" && typing) event.target.blur();
  });
  document.getElementById("foot").append("Made by corerun from the run's journal. Keys: arrows move, Enter opens the node, / searches.");
}

start();
