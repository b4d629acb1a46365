// The Compare view: two settings on one prompt, one after the other, with the same seed; texts and figures side by side.
import { make } from "./make.js";
import { Settings, nameOf } from "./settings.js";
import { ENDS, Stage, speed } from "./stage.js";

const $ = id => document.getElementById(id);
const sides = ["A", "B"].map(side);
let running = false, set = false;

function side(name) {
  const panel = make("section", "panel side"), head = make("h2", "", name), options = make("details"), box = make("div");
  panel.setAttribute("aria-label", `Settings and text ${name}`);
  options.append(make("summary", "", "Settings"), box);
  options.open = !matchMedia("(max-width: 60rem)").matches;
  const stage = Stage.made({});
  panel.append(head, options, stage.root);
  $("sides").append(panel);
  return { name, stage, settings: new Settings(box, `compare-${name.toLowerCase()}-`, ["seed"]), error: "" };
}

// A differs from B from the start, once the modes are known.
export function ready() {
  if (!set) { set = true; sides[0].settings.choose("S_MODE"); sides[1].settings.choose("Q_MODE"); }
}

export function stop() { running = false; for (const one of sides) one.stage.stop(); }

export async function both() {
  if (running) return;
  running = true;
  busy(true);
  const text = $("compare-prompt").value, asked = $("compare-seed").value;
  const seed = asked === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number(asked);
  const prompt = $("compare-chat").checked ? { messages: [{ role: "user", content: text }] } : { prompt: text };
  for (const one of sides) { one.error = ""; one.stage.clear(); one.stage.problem(""); }
  table();
  for (const one of sides) {
    if (!running) break;
    $("compare-spoken").textContent = `Generating ${one.name}`;
    try { await one.stage.run({ ...one.settings.values(), seed, ...prompt }, prompt.prompt || ""); } catch (error) { one.error = error.message; }
    table();
  }
  running = false;
  busy(false);
  $("compare-spoken").textContent = "Done. The table below the texts compares them.";
}

function busy(on) { $("compare-go").disabled = on; $("compare-stop").disabled = !on; }

const ROWS = [
  ["Mode", (result, one) => nameOf(one.settings.mode || "")],
  ["Tokens", result => result.metrics.tokens],
  ["Forwards", result => result.metrics.forwards],
  ["Tokens per forward", result => result.metrics.tokens_per_forward.toFixed(2)],
  ["Tokens per second", result => speed(result.metrics)],
  ["Seconds", result => result.metrics.seconds.toFixed(2)],
  ["Edits", result => result.metrics.edits_applied.reduce((sum, count) => sum + count, 0)],
  ["Ended by", result => ENDS[result.finish_reason]],
  ["Seed", result => result.seed ?? "–"],
];

function table() {
  const results = sides.map(one => one.stage.recording?.result);
  const rows = ROWS.map(([name, value]) => row(name, sides.map((one, index) => results[index] ? String(value(results[index], one)) : "–")));
  const models = sides.map(one => one.stage.recording?.asked.model);
  if (models.some(Boolean)) rows.unshift(row("Model", models.map(name => name || "the first")));
  if (results.every(Boolean)) rows.push(row("Texts", [sameness(...results.map(result => result.text))], 2));
  $("compare-table").querySelector("tbody").replaceChildren(...rows);
}

function row(name, cells, span = 1) {
  const made = make("tr"), head = make("th", "", name);
  head.scope = "row";
  made.append(head, ...cells.map(text => Object.assign(make("td", "", text), { colSpan: span })));
  return made;
}

function sameness(a, b) {
  if (a === b) return "the same";
  const words = a.split(/(?<=\s)/), others = b.split(/(?<=\s)/);
  const same = words.findIndex((word, index) => word !== others[index]);
  return `they part after ${same < 0 ? words.length : same} words`;
}

$("compare-form").onsubmit = event => { event.preventDefault(); both(); };
$("compare-stop").onclick = stop;
$("compare-prompt").value = "On a sunny morning the girl Lily walked to the park.";
table();
