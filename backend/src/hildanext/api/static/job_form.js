// The form that starts a job, made of what the server says: kinds of job, the values each reads, and the JSON Schema of
// the configuration, which gives every value its control and limits. Only what was changed is sent.
import { get } from "./api.js";
import { make } from "./make.js";

const $ = id => document.getElementById(id);
let kinds = [], schema = null;
const changed = new Map(); // place -> JSON text

export const loaded = () => kinds.length > 0;
export const kind = () => kinds.find(one => one.command === $("job-command").value);

export async function load() {
  [{ kinds }, schema] = await Promise.all([get("/jobs/kinds"), get("/jobs/schema")]);
  $("job-command").replaceChildren(...kinds.map(one => new Option(one.command)));
  describe();
}

// What POST /jobs and POST /jobs/plan take.
export function body() {
  const free = $("job-set").value.split("\n").map(line => line.trim()).filter(Boolean);
  const found = { command: $("job-command").value, set: [...[...changed].map(([place, text]) => `${place}=${text}`), ...free] };
  if ($("job-config").value.trim()) found.config = $("job-config").value.trim();
  return found;
}

// The schema of a value: references and a single non-null alternative are followed.
function at(place) {
  let node = schema;
  for (const name of place.split(".")) node = follow(follow(node).properties?.[name] || {});
  return node;
}

function follow(node) {
  const named = node.$ref ? schema.$defs[node.$ref.split("/").pop()] : null;
  return named ? { ...named, ...node, $ref: undefined } : node;
}

// {node, free: may be null}: of two alternatives, one of them null, the other counts.
function plain(node) {
  const kinds = (node.anyOf || []).map(follow), others = kinds.filter(one => one.type !== "null");
  return others.length === 1 && others.length < kinds.length ? { node: { ...others[0], description: node.description }, free: true } : { node, free: false };
}

function describe() {
  changed.clear();
  const own = kind();
  $("job-help").textContent = own ? own.help : "";
  $("job-plan").hidden = !own?.plan;
  const groups = new Map();
  for (const field of own ? own.fields : []) {
    const name = field.place.split(".")[0];
    if (!groups.has(name)) groups.set(name, []);
    groups.get(name).push(row(field));
  }
  $("job-fields").replaceChildren(...[...groups].map(([name, rows]) => {
    const group = make("details", "job-group");
    group.append(make("summary", "", `${name} (${rows.length})`), ...rows);
    return group;
  }));
  find();
  told();
}

function row(field) {
  const label = make("label", "job-field"), { node, free } = plain(at(field.place));
  label.dataset.words = `${field.place} ${field.description}`.toLowerCase();
  const input = control(node, field, free);
  input.dataset.place = field.place;
  label.append(make("span", "place", field.place), input, make("span", "help", field.description));
  return label;
}

function control(node, field, free) {
  const standard = JSON.stringify(field.default), choices = node.enum || (node.const !== undefined ? [node.const] : node.type === "boolean" ? [true, false] : null);
  let input;
  if (choices) {
    input = make("select");
    input.append(...choices.map(value => new Option(String(value), JSON.stringify(value), JSON.stringify(value) === standard, JSON.stringify(value) === standard)));
    if (free && !choices.includes(null)) input.append(new Option("none", "null", standard === "null", standard === "null"));
    input.onchange = () => take(field, input, input.value, standard);
    return input;
  }
  const number = node.type === "integer" || node.type === "number";
  input = Object.assign(make("input"), { type: number ? "number" : "text", placeholder: node.type === "string" ? field.default || "empty" : standard, spellcheck: false });
  if (number) {
    input.step = node.type === "integer" ? "1" : "any";
    // exclusive limits are left to the server, which says them
    for (const [side, name] of [["min", "minimum"], ["max", "maximum"]]) if (node[name] !== undefined) input[side] = node[name];
  }
  input.oninput = () => {
    const text = input.value.trim();
    take(field, input, text === "" ? standard : node.type === "string" ? JSON.stringify(text) : text, standard);
  };
  return input;
}

function take(field, input, text, standard) {
  const other = text !== standard;
  if (other) changed.set(field.place, text); else changed.delete(field.place);
  input.classList.toggle("changed", other);
  told();
}

function told() {
  const names = [...changed].map(([place, text]) => `${place}=${text}`);
  $("job-changed").textContent = names.length ? `Changed: ${names.join(", ")}` : "Nothing is changed.";
}

function find() {
  const words = $("job-find").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const group of $("job-fields").children) {
    let shown = 0;
    for (const label of group.querySelectorAll(".job-field")) {
      label.hidden = !words.every(word => label.dataset.words.includes(word));
      shown += label.hidden ? 0 : 1;
    }
    group.hidden = !shown;
    group.open = words.length > 0;
  }
}

$("job-command").onchange = describe;
$("job-find").oninput = find;
