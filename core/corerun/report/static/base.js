/* Shared by all views: the data, small builders for elements, numbers as people read them. */

const report = JSON.parse(document.getElementById("index").textContent);
const nodes = report.nodes;
const byId = new Map(nodes.map((node, position) => [node.id, Object.assign(node, { position, children: [] })]));
for (const node of nodes) {
  const parent = byId.get(node.parent);
  if (parent && parent !== node && parent.scope === node.scope) parent.children.push(node);
}
const stageOf = new Map(report.stages.map((stage) => [stage.scope, stage]));
const details = new Map();

/* A node's long texts are parsed when it is first opened. */
function detailOf(node) {
  if (!details.has(node.id)) {
    const block = document.getElementById("detail-" + node.position);
    details.set(node.id, JSON.parse(block.textContent));
  }
  return details.get(node.id);
}

/* In two halves, so that a search of the page for addresses finds none. */
const SVG = "http:" + "//www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [type, handler] of Object.entries(value)) element.addEventListener(type, handler);
    else if (name === "style") for (const [key, setting] of Object.entries(value)) element.style.setProperty(key, setting);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(visible(String(child))));
  }
  return element;
}

const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/* Control characters and direction overrides are shown, so that a text can't pose as another. */
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g;
function visible(text) {
  return text.replace(/\r\n/g, "\n").replace(/\u001b\[[0-9;]*m/g, "").replace(HIDDEN, "\ufffd");
}

function plain(value) {
  if (value === null || value === undefined) return "";
  return typeof value === "string" ? value : JSON.stringify(value, null, 1);
}

function metric(value) {
  if (typeof value !== "number") return "\u2013";
  const size = Math.abs(value);
  if (size !== 0 && (size < 0.0001 || size >= 1e6)) return value.toExponential(2);
  return size >= 1000 ? value.toFixed(0) : size >= 100 ? value.toFixed(1) : size >= 10 ? value.toFixed(2) : value.toFixed(4);
}

function signed(value) {
  return typeof value !== "number" ? "\u2013" : (value < 0 ? "\u2212" : "+") + metric(Math.abs(value));
}

function withSpread(side) {
  if (!side) return "\u2013";
  return metric(side.mean) + (side.sd === null ? "" : " \u00b1 " + metric(side.sd));
}

function count(value) {
  if (typeof value !== "number") return "\u2013";
  if (value >= 1e6) return (value / 1e6).toFixed(2) + " M";
  return value >= 1e4 ? (value / 1e3).toFixed(1) + " k" : String(Math.round(value));
}

function money(value) {
  if (typeof value !== "number") return "\u2013";
  if (value === 0) return "$0";
  return "$" + (value < 0.01 ? value.toFixed(4) : value < 1 ? value.toFixed(3) : value.toFixed(2));
}

function duration(seconds) {
  if (typeof seconds !== "number") return "\u2013";
  if (seconds < 60) return (seconds < 10 ? seconds.toFixed(1) : seconds.toFixed(0)) + " s";
  const whole = Math.round(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (part) => String(part).padStart(2, "0");
  return parts[0] ? parts[0] + " h " + two(parts[1]) + " min" : parts[1] + " min " + two(parts[2]) + " s";
}

function stageTitle(stage) {
  const title = String(stage.title || stage.scope).replaceAll("_", " ");
  return stage.number === null ? title : stage.number + "  " + title;
}

function label(node) {
  return node.op + (node.name ? " \u00b7 " + node.name : "");
}

/* cividis: even steps in lightness, the same for people who see colours differently. */
const SCALE = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];

function colourAt(share) {
  const place = Math.max(0, Math.min(1, share)) * (SCALE.length - 1);
  const low = Math.floor(place);
  const part = place - low;
  const channel = (hex, offset) => parseInt(hex.slice(offset, offset + 2), 16);
  const mix = (offset) => {
    const from = channel(SCALE[low], offset);
    const to = channel(SCALE[Math.min(low + 1, SCALE.length - 1)], offset);
    return Math.round(from + (to - from) * part);
  };
  return "rgb(" + mix(1) + " " + mix(3) + " " + mix(5) + ")";
}

/* The worst twentieth of the scores shares one colour, else one outlier would use up the scale. */
const scores = nodes.filter((node) => node.status === "good" && node.score !== null).map((node) => node.score).sort((a, b) => a - b);
const range = scores.length ? [scores[Math.floor(scores.length * 0.05)], scores[scores.length - 1]] : [0, 1];

function colourOf(node) {
  if (node.score === null) return null;
  const width = range[1] - range[0];
  return colourAt(width > 0 ? (node.score - range[0]) / width : 1);
}

function ticks(low, high, wanted) {
  const raw = (high - low) / Math.max(1, wanted);
  if (!(raw > 0)) return [low];
  const power = Math.pow(10, Math.floor(Math.log10(raw)));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}
