/* The tree view: one lane per stage, its tree from left to right, seed reruns in a strip below. */

const ROW = 30;
const COLUMN = 96;
const MARGIN = 22;
const MOST = 400;
const expanded = new Set();
const filters = { text: "", status: "all", stage: "all" };

function matches(node) {
  if (filters.status === "planted" ? !node.planted : filters.status !== "all" && node.status !== filters.status) return false;
  if (!filters.text) return true;
  return [node.id, node.op, node.name, node.text, node.reason].join("\n").toLowerCase().includes(filters.text);
}

/* Past MOST nodes only the way to the best ones, to what runs and to what was opened is drawn. */
function drawn(members) {
  if (members.length <= MOST) return new Set(members);
  const chosen = new Set();
  const climb = (node) => {
    for (let at = node; at && !chosen.has(at); at = byId.get(at.parent)) chosen.add(at);
  };
  const key = (node) => (node.status === "running" ? Infinity : node.score === null ? -Infinity : node.score);
  for (const node of [...members].sort((a, b) => key(b) - key(a))) {
    if (chosen.size >= MOST) break;
    climb(node);
  }
  for (const node of members) if (expanded.has(node.parent)) climb(node);
  const current = byId.get(selection.id);
  if (current && members.includes(current)) climb(current);
  return chosen;
}

/* Tidy layout: leaves take the next free row, a parent stands level with its first child. */
function layout(members, shown) {
  const places = new Map();
  let row = 0;
  const inside = new Set(members);
  const stack = members.filter((node) => shown.has(node) && !inside.has(byId.get(node.parent))).reverse().map((node) => [node, 0]);
  while (stack.length) {
    const [node, depth] = stack.pop();
    const children = node.children.filter((child) => shown.has(child));
    places.set(node, { depth, row, hidden: node.children.length - children.length });
    if (!children.length) row += 1;
    for (const child of [...children].reverse()) stack.push([child, depth + 1]);
  }
  return { places, rows: row };
}

function marker(node, x, y, size) {
  const fillColour = colourOf(node);
  const style = fillColour ? { fill: fillColour } : {};
  if (node.op === "carried") return s("rect", { class: "mark carried", x: x - size + 1, y: y - size + 1, width: 2 * size - 2, height: 2 * size - 2, rx: 2, style });
  if (node.status === "running") return s("circle", { class: "mark running", cx: x, cy: y, r: size - 1 });
  if (node.status === "failed") {
    const d = size - 2;
    const path = "M" + (x - d) + " " + (y - d) + "l" + 2 * d + " " + 2 * d + "m0 " + -2 * d + "l" + -2 * d + " " + 2 * d;
    return s("path", { class: node.planted ? "mark failed planted" : "mark failed", d: path });
  }
  return s("circle", { class: "mark good", cx: x, cy: y, r: size, style });
}

function describe(node) {
  const score = node.value === null ? "" : ", " + report.header.metric.name + " " + metric(node.value);
  const planted = node.planted ? " (planted fault)" : "";
  return label(node) + ", " + node.status + planted + score + ", " + node.id.slice(0, 8);
}

function nodeGroup(node, x, y, best, text, where) {
  const dim = !matches(node);
  return s(
    "g",
    {
      class: "node" + (dim ? " dim" : "") + (best ? " best" : ""),
      "data-node": node.id, role: "treeitem", tabindex: "-1", "aria-label": describe(node), "aria-selected": "false",
      on: { click: () => select(node.id) },
    },
    s("title", {}, describe(node) + (node.text ? "\n" + node.text : "")),
    s("rect", { class: "hit", x: x - 14, y: y - ROW / 2 + 1, width: COLUMN - 6, height: ROW - 2, rx: 6 }),
    best ? s("circle", { class: "halo", cx: x, cy: y, r: 12 }) : null,
    marker(node, x, y, 8),
    s("text", { class: "score", x: x + 15, y: where === "above" ? y - 4 : y + 4 }, text)
  );
}

function lane(stage) {
  const members = nodes.filter((node) => node.scope === stage.scope);
  const reruns = nodes.filter((node) => node.group === stage.scope && node.scope !== stage.scope);
  const shown = drawn(members);
  const { places, rows } = layout(members, shown);
  const depth = Math.max(0, ...[...places.values()].map((place) => place.depth));
  const at = (place) => [MARGIN + place.depth * COLUMN, 18 + place.row * ROW];
  const edges = [];
  const groups = [];
  for (const [node, place] of places) {
    const [x, y] = at(place);
    const children = node.children.filter((child) => places.has(child));
    for (const child of children) {
      const [cx, cy] = at(places.get(child));
      const turn = cx - COLUMN / 2 + 22;
      edges.push(s("path", { class: "edge", d: cy === y ? "M" + x + " " + y + "H" + cx : "M" + x + " " + y + "H" + (turn - 8) + "Q" + turn + " " + y + " " + turn + " " + (y + 8) + "V" + (cy - 8) + "Q" + turn + " " + cy + " " + (turn + 8) + " " + cy + "H" + cx }));
    }
    const text = node.status === "good" && node.value !== null ? metric(node.value) : node.status === "good" ? "" : node.op;
    groups.push(nodeGroup(node, x, y, node.id === stage.best, text, children.length ? "above" : "beside"));
    if (place.hidden) groups.push(more(node, place.hidden, x, y));
  }
  const height = Math.max(1, rows) * ROW + 10;
  const width = MARGIN + depth * COLUMN + 90;
  const roots = members.filter((node) => !shown.has(node) && !members.includes(byId.get(node.parent))).length;
  const drawing = s("svg", { class: "lane-tree", width, height, viewBox: "0 0 " + width + " " + height, role: "tree", "aria-label": stageTitle(stage) }, edges, groups);
  return h(
    "section",
    { class: "lane", "data-scope": stage.scope },
    h("h2", {}, stageTitle(stage), stage.ended === null ? h("span", { class: "tag" }, "under way") : null),
    h("p", { class: "lane-facts" }, laneFacts(stage)),
    stage.goals ? h("p", { class: "goals" }, stage.goals) : null,
    h("div", { class: "scroll" }, members.length ? drawing : h("p", { class: "empty" }, "No node yet.")),
    roots ? h("p", { class: "note" }, roots + " more first nodes are not drawn; search finds them.") : null,
    reruns.length ? strip(reruns) : null
  );
}

function laneFacts(stage) {
  const failed = stage.failed ? stage.failed + " failed" + (stage.planted ? " (" + stage.planted + " planted)" : "") : "";
  const limit = stage.max_nodes ? " of " + stage.max_nodes : "";
  const best = byId.get(stage.best);
  const parts = [stage.nodes + limit + " nodes", stage.good + " good", failed, stage.running ? stage.running + " running" : ""];
  if (stage.started !== null && stage.ended !== null) parts.push(duration(stage.ended - stage.started));
  const text = parts.filter(Boolean).join(" \u00b7 ");
  return best && best.value !== null ? [text, " \u00b7 best ", h("strong", {}, metric(best.value))] : text;
}

function more(node, hidden, x, y) {
  const open = () => {
    expanded.add(node.id);
    drawTree();
  };
  const key = (event) => {
    if (event.key !== "Enter") return;
    event.stopPropagation();
    open();
  };
  return s("g", { class: "more", role: "button", tabindex: "0", on: { click: open, keydown: key } }, s("title", {}, "Show " + hidden + " more children"), s("text", { x: x + 15, y: y + 14 }, "+" + hidden));
}

function strip(reruns) {
  const step = 84;
  const width = MARGIN + reruns.length * step;
  const groups = reruns.map((node, index) => nodeGroup(node, MARGIN + index * step, 17, false, node.value === null ? node.op : metric(node.value), "beside"));
  return h(
    "div", { class: "reruns" },
    h("h3", {}, "Seed reruns of the best"),
    h("div", { class: "scroll" }, s("svg", { width, height: 34, viewBox: "0 0 " + width + " 34", role: "tree", "aria-label": "Seed reruns" }, groups))
  );
}

function legend() {
  const stops = SCALE.map((_, index) => s("stop", { offset: index / (SCALE.length - 1), "stop-color": colourAt(index / (SCALE.length - 1)) }));
  const low = report.header.metric.maximize ? range[0] : -range[0];
  const high = report.header.metric.maximize ? range[1] : -range[1];
  const sample = (facts, text) => h("span", { class: "key" }, s("svg", { width: 20, height: 20, "aria-hidden": "true" }, marker(facts, 10, 10, 7)), text);
  const base = { op: "", score: null, status: "good" };
  const middle = { ...base, score: (range[0] + range[1]) / 2 };
  return h(
    "div", { class: "legend" },
    scores.length ? h("span", { class: "key" }, (scores[0] < range[0] ? (report.header.metric.maximize ? "\u2264 " : "\u2265 ") : "") + metric(low),
      s("svg", { width: 120, height: 12, role: "img", "aria-label": "colour scale from worse to better" }, s("defs", {}, s("linearGradient", { id: "scale" }, stops)), s("rect", { width: 120, height: 12, rx: 3, fill: "url(#scale)" })),
      metric(high) + " " + report.header.metric.name + (report.header.metric.maximize ? "" : " (lower is better)")) : null,
    sample(middle, "good"), sample({ ...base, status: "failed" }, "failed"),
    sample({ ...base, status: "failed", planted: true }, "failed, planted"),
    sample({ ...base, status: "running" }, "running"), sample({ ...middle, op: "carried" }, "carried over")
  );
}

function toolbar() {
  const option = (value, text, chosen) => h("option", { value, selected: value === chosen }, text);
  const redraw = (name) => (event) => {
    filters[name] = name === "text" ? event.target.value.trim().toLowerCase() : event.target.value;
    drawTree();
  };
  const statuses = [["all", "every status"], ["good", "good"], ["failed", "failed"], ["planted", "failed, planted"], ["running", "running"]];
  return h(
    "div", { class: "toolbar" },
    h("label", {}, h("span", { class: "sr" }, "Search nodes"), h("input", { type: "search", id: "search", placeholder: "Search plan, name, id   ( / )", on: { input: redraw("text"), keydown: searchKey } })),
    h("label", {}, h("span", { class: "sr" }, "Status"), h("select", { on: { change: redraw("status") } }, statuses.map(([value, text]) => option(value, text, filters.status)))),
    h("label", {}, h("span", { class: "sr" }, "Stage"), h("select", { on: { change: redraw("stage") } }, option("all", "every stage", filters.stage), report.stages.map((stage) => option(stage.scope, stageTitle(stage), filters.stage)))),
    h("span", { class: "found", id: "found", role: "status" })
  );
}

function searchKey(event) {
  if (event.key !== "Enter") return;
  const hits = visual().filter((node) => matches(node));
  if (!hits.length) return;
  const next = hits.findIndex((node) => node.id === selection.id) + 1;
  select(hits[next % hits.length].id);
  event.preventDefault();
}

/* The nodes in the order in which the eye meets them. */
function visual() {
  return [...document.querySelectorAll("#lanes [data-node]")].map((group) => byId.get(group.getAttribute("data-node")));
}

function drawTree() {
  const lanes = document.getElementById("lanes");
  if (!lanes) return;
  const stages = report.stages.filter((stage) => filters.stage === "all" || stage.scope === filters.stage);
  lanes.replaceChildren(...(stages.length ? stages.map(lane) : [h("p", { class: "empty" }, "No stage has begun.")]));
  const hits = nodes.filter((node) => matches(node) && (filters.stage === "all" || node.group === filters.stage)).length;
  const filtered = filters.text || filters.status !== "all";
  document.getElementById("found").textContent = filtered ? hits + " of " + nodes.length + " nodes" : "";
  markSelection(false);
}

function treeView() {
  return h("div", { class: "split" }, h("div", { class: "pane" }, toolbar(), legend(), h("div", { id: "lanes", on: { keydown: treeKey } })), h("aside", { class: "panel", id: "panel", tabindex: "-1", "aria-label": "Node" }));
}

function treeKey(event) {
  const node = byId.get(selection.id);
  const order = visual();
  const at = order.indexOf(node);
  let target = null;
  if (event.key === "ArrowDown") target = order[at + 1];
  else if (event.key === "ArrowUp") target = order[at - 1];
  else if (event.key === "ArrowLeft") target = node && byId.get(node.parent);
  else if (event.key === "ArrowRight") target = node && node.children.find((child) => order.includes(child));
  else if (event.key === "Home") target = order[0];
  else if (event.key === "End") target = order[order.length - 1];
  else if (event.key === "Enter") {
    document.getElementById("panel").focus();
    event.preventDefault();
    return;
  } else return;
  event.preventDefault();
  if (target) select(target.id, true);
}
