/* Drawn with SVG from the data: scores over nodes, what ran when, what it cost. */

/* The room that a chart has; drawn again when the window changes. */
const room = () => Math.max(560, document.getElementById("main").clientWidth - 118);

const openNode = (id) => () => select(id);

function axisY(low, high, top, bottom, left, right, name) {
  const y = (value) => bottom - ((value - low) / (high - low || 1)) * (bottom - top);
  const lines = ticks(low, high, 6).filter((value) => value >= low && value <= high).map((value) => [s("line", { class: "rule", x1: left, x2: right, y1: y(value), y2: y(value) }), s("text", { class: "tick", x: left - 8, y: y(value) + 4, "text-anchor": "end" }, String(value))]);
  return { y, parts: [lines, s("text", { class: "axis", transform: "translate(14 " + (top + bottom) / 2 + ") rotate(-90)", "text-anchor": "middle" }, name)] };
}

function curvesView() {
  const points = report.curve;
  const values = points.map((point) => point.value).concat(points.map((point) => point.best)).filter((value) => value !== null);
  if (!values.length) return h("p", { class: "empty" }, "No node has a score yet.");
  const width = room();
  const [left, right, top, bottom] = [72, width - 16, 46, 380];
  const sorted = [...values].sort((a, b) => a - b);
  const pad = (sorted[sorted.length - 1] - sorted[0]) * 0.06 || 0.01;
  const { y, parts } = axisY(sorted[0] - pad, sorted[sorted.length - 1] + pad, top, bottom, left, right, report.header.metric.name);
  const x = (index) => left + 14 + (points.length > 1 ? (index / (points.length - 1)) * (right - left - 28) : 0);
  const half = points.length > 1 ? (x(1) - x(0)) / 2 : 10;
  const bands = [];
  const lines = [];
  for (const [index, stage] of report.stages.filter((item) => !item.secondary).entries()) {
    const own = points.filter((point) => point.scope === stage.scope);
    if (!own.length) continue;
    const from = x(own[0].index) - half;
    const to = x(own[own.length - 1].index) + half;
    bands.push(s("rect", { class: index % 2 ? "band odd" : "band", x: from, y: top, width: to - from, height: bottom - top }), s("text", { class: "band-name", x: (from + to) / 2, y: top - 12, "text-anchor": "middle" }, s("title", {}, stageTitle(stage)), shorten(stageTitle(stage), (to - from) / 6.6)));
    const best = own.filter((point) => point.best !== null);
    const move = (point, before) => (before && before.sets === point.sets ? "V" : "M" + x(point.index) + " ") + y(point.best);
    const path = best.map((point, place) => (place ? "H" + x(point.index) : "") + move(point, best[place - 1]));
    if (best.length) lines.push(s("path", { class: "best-line", d: path.join("") + "H" + to }));
  }
  const dots = points.map((point) => {
    const node = byId.get(point.node);
    const at = point.value === null ? bottom - 8 : y(point.value);
    return s("g", { class: "dot", on: { click: openNode(node.id) } }, s("title", {}, describe(node)), s("circle", { class: "hit", cx: x(point.index), cy: at, r: 9 }), marker(node, x(point.index), at, 6));
  });
  const step = Math.max(1, Math.ceil(points.length / 20));
  const labels = points.filter((point) => point.index % step === 0).map((point) => s("text", { class: "tick", x: x(point.index), y: bottom + 18, "text-anchor": "middle" }, point.index + 1));
  const frame = s("path", { class: "frame", d: "M" + left + " " + top + "V" + bottom + "H" + right });
  return h("div", { class: "chart" }, h("h2", {}, "Score of each node, in the order in which they finished"), legend(), h("div", { class: "scroll" }, s("svg", { width, height: 430, viewBox: "0 0 " + width + " 430", role: "img", "aria-label": "Scores over nodes" }, bands, parts, frame, lines, dots, labels, s("text", { class: "axis", x: (left + right) / 2, y: bottom + 42, "text-anchor": "middle" }, "finished node"))), h("p", { class: "note" }, "The line is the best so far. It starts anew with each stage, and with the first node that covers more data sets, since scores over different data can't be compared. Crosses at the bottom have no score."));
}

function shorten(text, size) {
  return text.length <= size ? text : size < 4 ? "" : text.slice(0, Math.floor(size) - 1) + "\u2026";
}

let zoom = 1;

function times(end, wanted) {
  const steps = [0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];
  const step = steps.find((size) => end / size <= wanted) || Math.ceil(end / wanted / 86400) * 86400;
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, index) => index * step);
}

function timelineView() {
  const given = report.timeline;
  const lanes = (bars) => bars.reduce((most, bar) => Math.max(most, bar[0] + 1), 0);
  const groups = [["programs", given.programs, "run"], ["model calls", given.calls, "call"]].filter((group) => group[1].length);
  if (!groups.length) return h("p", { class: "empty" }, "Nothing has run yet.");
  const left = 104;
  const width = Math.round(left + (room() - left) * zoom + 16);
  const end = Math.max(given.end, 1e-3);
  const x = (seconds) => left + (seconds / end) * (width - left - 16);
  const tall = 20;
  const parts = [];
  let top = 34;
  for (const [name, bars, kind] of groups) {
    const rows = lanes(bars);
    parts.push(s("text", { class: "axis", x: 0, y: top + 13 }, name));
    for (let row = 0; row < rows; row++) parts.push(s("rect", { class: "band", x: left, y: top + row * tall, width: width - left - 16, height: tall - 4 }));
    for (const [row, from, to, text, id, failed, queued] of bars) {
      const y = top + row * tall;
      const node = byId.get(id);
      const wide = Math.max(1.5, x(to) - x(from) - 0.5);
      if (queued > 0) parts.push(s("rect", { class: "bar wait", x: x(Math.max(0, from - queued)), y: y + 6, width: Math.max(0, x(from) - x(Math.max(0, from - queued))), height: 4 }));
      parts.push(s("rect", { class: "bar " + kind + (failed ? " bad" : ""), x: x(from), y, width: wide, height: tall - 4, rx: 2, on: node ? { click: openNode(id) } : {} }, s("title", {}, text + ", " + duration(to - from) + (failed ? ", failed" : "") + (node ? "\n" + describe(node) : ""))));
    }
    top += rows * tall + 22;
  }
  const rules = times(end, Math.round(room() / 110) * zoom).map((value) => [s("line", { class: "rule", x1: x(value), x2: x(value), y1: 26, y2: top - 14 }), s("text", { class: "tick", x: x(value), y: 18, "text-anchor": "middle" }, value ? duration(value) : "0")]);
  const resumes = given.resumes.map((value) => s("line", { class: "resume", x1: x(value), x2: x(value), y1: 24, y2: top - 14 }, s("title", {}, "resumed")));
  const choose = (event) => {
    zoom = Number(event.target.value);
    drawView();
  };
  const busy = given.programs.reduce((sum, bar) => sum + bar[2] - bar[1], 0);
  return h("div", { class: "chart" }, h("h2", {}, "What ran when"), h("div", { class: "toolbar" }, h("label", {}, "Scale ", h("select", { on: { change: choose } }, [1, 2, 4, 8, 16].map((value) => h("option", { value, selected: value === zoom }, value + "\u00d7")))),
    h("span", { class: "key" }, h("i", { class: "swatch run" }), "program"), h("span", { class: "key" }, h("i", { class: "swatch call" }), "model call"), h("span", { class: "key" }, h("i", { class: "swatch wait" }), "waiting for a place"), h("span", { class: "key" }, h("i", { class: "swatch bad" }), "failed")),
  h("div", { class: "scroll", tabindex: "0" }, s("svg", { width, height: top, viewBox: "0 0 " + width + " " + top, role: "img", "aria-label": "Timeline" }, rules, parts, resumes)), h("p", { class: "note" }, "On average " + (busy / end).toFixed(2) + " programs ran at once. Time between a stop and a resume is left out" + (given.resumes.length ? "; dashed lines are resumes." : ".")));
}

function costTable(title, rows) {
  const most = Math.max(...rows.map((row) => row.cost_usd), 0);
  const price = (row) => (row.unpriced === row.calls ? "no price" : money(row.cost_usd) + (row.unpriced ? " + ?" : ""));
  const meter = (row) => h("span", { class: "meter", style: { "--share": most > 0 ? row.cost_usd / most : 0 } });
  const columns = [
    ["calls", (row) => row.calls, true],
    ["failed", (row) => row.failed, rows.some((row) => row.failed)],
    ["sent again", (row) => row.extra, rows.some((row) => row.extra)],
    ["prompt", (row) => count(row.prompt), true],
    ["of it cached", (row) => count(row.cached), rows.some((row) => row.cached)],
    ["completion", (row) => count(row.completion), true],
    ["time", (row) => duration(row.latency_s), true],
    ["cost", (row) => [price(row), meter(row)], true],
  ].filter((column) => column[2]);
  const head = columns.map(([name]) => h("th", { scope: "col" }, name));
  const body = rows.map((row) => h("tr", {}, h("th", { scope: "row" }, String(row.key).replaceAll("_", " ")), columns.map(([name, cell]) => h("td", { class: name === "cost" ? "cost" : null }, cell(row)))));
  return h("section", { class: "cost-table" }, h("h2", {}, title), h("div", { class: "scroll" }, h("table", { class: "grid" }, h("thead", {}, h("tr", {}, h("td", {}), head)), h("tbody", {}, body))));
}

function costView() {
  if (!report.cost.model.length) return h("p", { class: "empty" }, "No model was called.");
  const unpriced = report.header.unpriced ? h("p", { class: "note" }, report.header.unpriced + " answered calls have no known price and are not in the sums.") : null;
  return h("div", { class: "chart" }, unpriced, costTable("By model", report.cost.model), costTable("By stage", report.cost.stage), costTable("By role", report.cost.role), costTable("By purpose", report.cost.purpose));
}

function logView() {
  const { entries, left_out: left } = report.log;
  if (!entries.length) return h("p", { class: "empty" }, "Nothing to report: no warning, no degradation, no refusal.");
  const rows = entries.map((entry) => h("tr", {}, h("td", {}, duration(entry.t)), h("td", {}, h("span", { class: "tag" }, entry.kind)), h("td", { class: "message" }, entry.message), h("td", {}, entry.node ? nodeLink(entry.node) : "")));
  const head = ["time", "kind", "message", "node"].map((text) => h("th", { scope: "col" }, text));
  return h("div", { class: "chart" }, h("h2", {}, "Warnings and what else happened"), h("div", { class: "scroll" }, h("table", { class: "grid log" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows))), left ? h("p", { class: "note" }, left + " more entries are not shown.") : null);
}

function picture(path, source, note, text) {
  const shown = source ? h("img", { src: source, alt: text || path, loading: "lazy" }) : h("p", { class: "note" }, path + " (" + note + ")");
  return h("figure", {}, shown, h("figcaption", {}, text || path.split("/").pop()));
}

function figuresView() {
  return h("div", { class: "chart" }, h("h2", {}, "Figures of the whole run"), h("div", { class: "plots wide" }, report.figures.map((figure) => picture(figure.path, figure.src, figure.note, ""))));
}
