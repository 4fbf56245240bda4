/* The panel of one node: what was planned, what changed, what happened, what it cost. */

const DIFF_CELLS = 4e6;
const CONTEXT = 3;

/* Longest common subsequence of lines between the equal head and tail; null when that is too large. */
function lineDiff(before, after) {
  let head = 0;
  while (head < before.length && head < after.length && before[head] === after[head]) head++;
  let tail = 0;
  while (tail < before.length - head && tail < after.length - head && before[before.length - 1 - tail] === after[after.length - 1 - tail]) tail++;
  const a = before.slice(head, before.length - tail);
  const b = after.slice(head, after.length - tail);
  if (a.length * b.length > DIFF_CELLS) return null;
  const width = b.length + 1;
  const table = new Uint32Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      table[i * width + j] = a[i] === b[j] ? table[(i + 1) * width + j + 1] + 1 : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
    }
  }
  const rows = before.slice(0, head).map((line) => [" ", line]);
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) rows.push([" ", a[i++], j++]);
    else if (i < a.length && (j >= b.length || table[(i + 1) * width + j] >= table[i * width + j + 1])) rows.push(["-", a[i++]]);
    else rows.push(["+", b[j++]]);
  }
  for (const line of before.slice(before.length - tail)) rows.push([" ", line]);
  return rows;
}

function diffView(before, after) {
  const rows = lineDiff(before.split("\n"), after.split("\n"));
  if (!rows) return h("p", { class: "note" }, "The two programs differ too much to be compared line by line.");
  const near = rows.map(() => false);
  rows.forEach((row, index) => {
    if (row[0] === " ") return;
    for (let i = Math.max(0, index - CONTEXT); i <= Math.min(rows.length - 1, index + CONTEXT); i++) near[i] = true;
  });
  if (!near.includes(true)) return h("p", { class: "note" }, "The program is the same as its parent's.");
  const lines = [];
  let number = 0;
  let gap = false;
  rows.forEach((row, index) => {
    if (row[0] !== "-") number++;
    if (!near[index]) {
      if (!gap) lines.push(h("div", { class: "line gap" }, h("span", { class: "no" }, "\u22ef")));
      gap = true;
      return;
    }
    gap = false;
    const kind = { " ": "same", "+": "added", "-": "removed" }[row[0]];
    lines.push(h("div", { class: "line " + kind }, h("span", { class: "no" }, row[0] === "-" ? "" : number), h("span", { class: "sign" }, row[0]), row[1] + "\n"));
  });
  return h("pre", { class: "code", tabindex: "0" }, lines);
}

function codeView(text) {
  return h("pre", { class: "code", tabindex: "0" }, text.split("\n").map((line, index) => h("div", { class: "line" }, h("span", { class: "no" }, index + 1), line + "\n")));
}

function section(title, ...content) {
  return h("section", { class: "part" }, h("h3", {}, title), content);
}

function prose(text) {
  return h("p", { class: "prose" }, plain(text));
}

function nodeLink(id, text) {
  if (!byId.has(id)) return h("code", {}, String(id).slice(0, 8));
  return h("a", { href: "#node-" + encodeURIComponent(id) }, text || String(id).slice(0, 8));
}

function program(node, detail) {
  if (!detail.code) return null;
  const parent = byId.get(node.parent) || byId.get(detail.origin_id);
  const before = parent ? detailOf(parent).code : null;
  const body = h("div", {});
  if (!before) return section("Program", codeView(detail.code));
  const show = (full) => {
    body.replaceChildren(full ? codeView(detail.code) : diffView(before, detail.code));
    choices.querySelectorAll("button").forEach((button, index) => button.setAttribute("aria-pressed", String(full === (index === 1))));
  };
  const choices = h("span", { class: "choice" }, h("button", { type: "button", on: { click: () => show(false) } }, "Changes"), h("button", { type: "button", on: { click: () => show(true) } }, "All of it"));
  show(false);
  return h("section", { class: "part" }, h("h3", {}, "Program", h("span", { class: "against" }, " against ", nodeLink(parent.id, label(parent))), choices), body);
}

function scoresPerSet(detail) {
  const given = detail.metric && typeof detail.metric === "object" ? detail.metric : null;
  if (!given || (!given.sets && !given.test)) return null;
  const sets = [...new Set([...Object.keys(given.sets || {}), ...Object.keys(given.test || {})])];
  const rows = sets.map((name) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, metric((given.sets || {})[name])), h("td", {}, metric((given.test || {})[name]))));
  const direction = given.maximize === false ? "lower is better" : "higher is better";
  return section("Scores", h("table", { class: "grid" }, h("caption", {}, plain(given.name) + ", " + direction), h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "data set"), h("th", { scope: "col" }, "validation"), h("th", { scope: "col" }, "test"))), h("tbody", {}, rows)));
}

function failure(node, detail) {
  if (!detail.exc_type && !(node.status === "failed" && detail.reason)) return null;
  const info = [plain(detail.exc_type), plain(detail.exc_info)].filter(Boolean).join(": ");
  const frames = Array.isArray(detail.exc_stack) ? detail.exc_stack.map((frame) => (Array.isArray(frame) ? frame.map(plain).join("  ") : plain(frame))).join("\n") : plain(detail.exc_stack);
  return section("Failure", node.planted ? h("p", { class: "note" }, "A fault was planted here on purpose: " + [detail.faults].flat().map(plain).join(", ") + ".") : null, prose(info || detail.reason), frames ? h("pre", { class: "code", tabindex: "0" }, frames) : null);
}

function plots(detail) {
  if (!detail.plots.length) return null;
  return section("Plots", h("div", { class: "plots" }, detail.plots.map((plot) => picture(plot.path, plot.src, plot.note, plot.analysis))), detail.vlm_feedback_summary ? prose(detail.vlm_feedback_summary) : null);
}

function timing(detail) {
  const given = detail.timing;
  if (!given || typeof given !== "object") return null;
  const parts = [["model", given.llm_s, "call"], ["program", given.exec_s, "run"], ["waiting", given.queue_s, "wait"]].filter((part) => typeof part[1] === "number" && part[1] > 0);
  const sum = parts.reduce((total, part) => total + part[1], 0);
  if (!sum) return null;
  return section("Time", h("div", { class: "split-bar" }, parts.map(([name, value, kind]) => h("span", { class: kind, style: { "flex-grow": value / sum }, title: name + " " + duration(value) }))), h("p", { class: "note" }, parts.map(([name, value]) => name + " " + duration(value)).join(" \u00b7 ")));
}

function calls(detail) {
  if (!detail.calls.length) return null;
  const rows = detail.calls.map((call) => h("tr", { class: call.failed ? "bad" : "" }, h("th", { scope: "row" }, call.purpose + (call.failed ? " \u2013 " + call.failed : "")), h("td", {}, count(call.prompt)), h("td", {}, count(call.completion)), h("td", {}, money(call.cost_usd)), h("td", {}, duration(call.latency_s))));
  const head = ["purpose", "prompt", "completion", "cost", "time"].map((text) => h("th", { scope: "col" }, text));
  return section("Model calls", h("div", { class: "scroll" }, h("table", { class: "grid" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows))));
}

function programs(detail) {
  if (!detail.programs.length) return null;
  const memory = (value) => (typeof value === "number" && value > 0 ? Math.round(value) + " MB" : "\u2013");
  const rows = detail.programs.map((item) => h("tr", { class: item.status === "ok" ? "" : "bad" }, h("th", { scope: "row" }, item.label), h("td", {}, item.status), h("td", {}, duration(item.wall_s)), h("td", {}, duration(item.cpu_s)), h("td", {}, memory(item.max_rss_mb))));
  const head = ["program", "end", "wall", "CPU", "memory"].map((text) => h("th", { scope: "col" }, text));
  return section("Programs run", h("div", { class: "scroll" }, h("table", { class: "grid" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows))));
}

function facts(node, detail) {
  const parent = byId.get(node.parent);
  const delta = parent && parent.value !== null && node.value !== null ? node.value - parent.value : null;
  const tokens = detail.tokens && typeof detail.tokens === "object" ? detail.tokens : {};
  const pairs = [
    [report.header.metric.name, node.value === null ? null : [metric(node.value), delta === null ? "" : h("span", { class: "delta" }, " " + signed(delta) + " against its parent")]],
    ["Setting", detail.setting && Object.keys(detail.setting).length ? h("code", {}, Object.entries(detail.setting).map(([key, value]) => key + " = " + plain(value)).join(", ")) : null],
    ["Parent", parent ? [nodeLink(parent.id), " ", label(parent)] : null],
    ["Copied from", detail.origin_id ? nodeLink(detail.origin_id) : null],
    ["Children", node.children.length ? node.children.map((child, index) => [index ? ", " : "", nodeLink(child.id)]) : null],
    ["Seed", detail.seed ?? null],
    ["Attempt", node.attempt ? node.attempt + 1 : null],
    ["Asked", duration(node.asked) + " after the start" + (node.done === null || node.op === "carried" ? "" : ", took " + duration(node.done - node.asked))],
    ["Tokens", tokens.prompt === undefined ? null : count(tokens.prompt) + " in, " + count(tokens.completion) + " out" + (typeof tokens.cost_usd === "number" ? ", " + money(tokens.cost_usd) : "")],
    ["Not finite", detail.nonfinite.length ? detail.nonfinite.join(", ") : null],
  ];
  return h("dl", { class: "facts" }, pairs.filter((pair) => pair[1] !== null).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}

function output(detail) {
  if (!detail.output) return null;
  return section("Output", detail.output_cut ? h("p", { class: "note" }, "The first " + count(detail.output_cut) + " characters are left out.") : null, h("pre", { class: "code wrap", tabindex: "0" }, detail.output));
}

function nodePanel(node) {
  const detail = detailOf(node);
  const stage = stageOf.get(node.group);
  const state = node.planted ? "failed, planted" : node.status;
  return [
    h("p", { class: "crumb" }, (stage ? stageTitle(stage) : node.scope) + (node.secondary ? " \u00b7 rerun" : "")),
    h("h2", {}, label(node), " ", h("span", { class: "tag " + node.status }, state), node.written_by === "rules" ? h("span", { class: "tag" }, "rules") : null, node.counted ? null : h("span", { class: "tag" }, "not counted")),
    h("p", { class: "id" }, h("code", {}, node.id)),
    facts(node, detail),
    detail.plan ? section("Plan", prose(detail.plan)) : null,
    failure(node, detail),
    program(node, detail),
    scoresPerSet(detail),
    plots(detail),
    detail.analysis ? section("Review", prose(detail.analysis)) : null,
    output(detail),
    timing(detail),
    calls(detail),
    programs(detail),
    detail.plot_code ? h("details", { class: "part" }, h("summary", {}, "Plot program"), codeView(plain(detail.plot_code))) : null,
  ].filter(Boolean);
}
