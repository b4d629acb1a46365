// Small multiples of everything a run writes into metrics.jsonl: one panel for each number, with its stages behind it.
import { make } from "./make.js";

const SVG = "http://www.w3.org/2000/svg", WIDTH = 300, HEIGHT = 90;
const FIRST = ["loss", "reward", "held_reward", "eval.eval_nll", "tokens_per_forward", "grad_norm", "lr", "tokens_per_second"];
const BESIDE = new Set(["step", "seconds", "time", "epoch"]);

// metrics: the lines of metrics.jsonl; {name: [[step, value], ...]}, the best known names first.
export function series(metrics) {
  const found = new Map();
  for (const entry of metrics) {
    if (!Number.isFinite(entry.step)) continue;
    for (const [name, value] of leaves(entry)) {
      if (BESIDE.has(name)) continue;
      if (!found.has(name)) found.set(name, []);
      found.get(name).push([entry.step, value]);
    }
  }
  const place = name => { const at = FIRST.indexOf(name); return at < 0 ? FIRST.length : at; };
  const names = [...found.keys()].filter(name => found.get(name).length > 1).sort((a, b) => place(a) - place(b));
  return new Map(names.map(name => [name, found.get(name)]));
}

function* leaves(value, before = "") {
  for (const [key, inner] of Object.entries(value)) {
    const name = before ? `${before}.${key}` : key;
    if (typeof inner === "number") yield [name, inner];
    else if (inner && typeof inner === "object" && !Array.isArray(inner)) yield* leaves(inner, name);
  }
}

export class Curves {
  constructor() {
    this.root = make("div", "curves");
    this.panels = new Map(); this.all = false;
    this.more = make("button", "quiet");
    this.more.type = "button";
    this.more.onclick = () => { this.all = !this.all; this.show(this.data, this.stages); };
    this.grid = make("div", "curve-grid");
    this.root.append(this.grid, this.more);
  }

  show(data, stages = []) {
    this.data = data; this.stages = stages;
    // what never moves is told last, and only where everything is asked for
    const moving = [...data].filter(([name, points]) => FIRST.includes(name) || points.some(point => point[1] !== points[0][1]));
    const shown = new Map(this.all ? [...data] : moving.slice(0, 6));
    for (const [name, panel] of this.panels) if (!shown.has(name)) { panel.root.remove(); this.panels.delete(name); }
    let before = null;
    for (const [name, points] of shown) {
      if (!this.panels.has(name)) this.panels.set(name, panel(name));
      const own = this.panels.get(name);
      const next = before ? before.nextSibling : this.grid.firstChild;
      if (next !== own.root) this.grid.insertBefore(own.root, next);
      draw(own, name, points, stages);
      before = own.root;
    }
    this.more.hidden = data.size <= Math.min(6, moving.length);
    this.more.textContent = this.all ? "Fewer curves" : `All ${data.size} curves`;
    this.root.hidden = !data.size;
  }
}

function panel(name) {
  const root = make("figure", "curve"), head = make("figcaption"), svg = document.createElementNS(SVG, "svg"), foot = make("div", "curve-axis");
  const value = make("b");
  svg.setAttribute("class", "loss");
  svg.setAttribute("role", "img");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  head.append(make("span", "", name.replace(/^eval\./, "").replaceAll("_", " ")), value);
  root.append(head, svg, foot);
  return { root, svg, value, foot, look: "" };
}

function draw(own, name, points, stages) {
  const look = `${points.length} ${points.at(-1)} ${stages.length}`;
  if (look === own.look) return;
  own.look = look;
  const values = points.map(point => point[1]), low = Math.min(...values), high = Math.max(...values);
  const first = points[0][0], last = points.at(-1)[0];
  const x = step => (step - first) / Math.max(1, last - first) * WIDTH;
  const y = value => high === low ? HEIGHT / 2 : 5 + (high - value) / (high - low) * (HEIGHT - 10);
  const parts = [];
  stages.forEach((stage, index) => {
    const from = Math.max(first, stage.first), to = Math.min(last, stage.first + stage.steps);
    if (index % 2 === 1 && to > from) parts.push(shape("rect", { class: "stage-band", x: x(from), width: x(to) - x(from), y: 0, height: HEIGHT }));
  });
  for (const at of [5, HEIGHT - 5]) parts.push(shape("line", { class: "grid", x1: 0, x2: WIDTH, y1: at, y2: at }));
  parts.push(shape("polyline", { class: "line", points: thin(points).map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }));
  own.svg.replaceChildren(...parts);
  own.svg.setAttribute("aria-label", `${name}: ${short(values[0])} at step ${first}, ${short(values.at(-1))} at step ${last}, between ${short(low)} and ${short(high)}`);
  own.value.textContent = short(values.at(-1));
  own.foot.replaceChildren(make("span", "", `step ${first}`), make("span", "", low === high ? short(low) : `${short(low)} to ${short(high)}`), make("span", "", String(last)));
}

// At most 600 points, the lowest and highest of each stretch among them.
function thin(points) {
  if (points.length <= 600) return points;
  const size = Math.ceil(points.length / 300), kept = [];
  for (let at = 0; at < points.length; at += size) {
    const part = points.slice(at, at + size);
    const low = part.reduce((a, b) => b[1] < a[1] ? b : a), high = part.reduce((a, b) => b[1] > a[1] ? b : a);
    kept.push(...(low[0] < high[0] ? [low, high] : low === high ? [low] : [high, low]));
  }
  return kept;
}

export function short(value) {
  if (Number.isInteger(value)) return value.toLocaleString();
  const size = Math.abs(value);
  return size >= 1000 ? Math.round(value).toLocaleString() : size >= 0.01 || size === 0 ? value.toFixed(size >= 10 ? 1 : 3) : value.toExponential(1);
}

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}
