// The card of the model that is loaded: what /health says of it, in words.
import { make } from "./make.js";
import { nameOf } from "./settings.js";

let shown = "";

export function showModel(state) {
  const key = JSON.stringify([state.status, state.problem, state.engine, state.model, state.models?.map(one => [one.name, one.state]), state.reasons, state.capability]);
  if (key === shown) return;
  shown = key;
  document.getElementById("model-title").textContent = state.model?.model || "Model";
  document.getElementById("model-body").replaceChildren(...parts(state));
}

function parts(state) {
  const found = [facts([["State", state.problem ? `${state.status}: ${state.problem}` : state.status], ["hildanext", state.version]])];
  if (!state.model) return found;
  const { model, capability } = state, about = model.about || {};
  found.push(facts([
    ["Engine", state.engine], ["Device", model.device], ["Precision", `${model.dtype}${model.dtype_reason ? ` (${model.dtype_reason})` : ""}`],
    ["Parameters", count(about.parameters)], ["Block", model.block && `${model.block} tokens`], ["Window", model.window && `${model.window} tokens, prompt and answer`],
    ["Mask token", about.mask_id], ["Converted", about.converted === undefined ? "" : about.converted ? "yes" : "no: its text as diffusion is poor"],
    ["Parent", about.parent], ["Adapters on", about.base], ["Written by run", about.run],
    ["Can", capability && [capability.edit && "rewrite its text", capability.cache && "reuse finished blocks", capability.exact && "exact: cached equals uncached"].filter(Boolean).join(", ")],
    ["At once", capability && `${capability.batch} requests`],
  ]));
  const presets = Object.entries(about.presets || {});
  if (presets.length) found.push(make("h3", "", "Its own thresholds"), facts(presets.map(([mode, values]) => [nameOf(mode), Object.entries(values).map(([name, value]) => `${name} ${value === null ? "never" : value}`).join(", ")])));
  if (about.history?.length) found.push(make("h3", "", "How it was made"), list(about.history.map(told)));
  if ((state.models || []).length > 1) found.push(make("h3", "", "Models of this server"), list(state.models.map(one => `${one.name}: ${one.state}`)));
  const notes = [...(capability?.reasons || []), ...state.reasons.map(reason => `not used: ${reason}`)];
  if (notes.length) found.push(make("h3", "", "Notes"), list(notes));
  return found;
}

function told(step) {
  if (step.merged) return `merged: ${step.merged.join(", ")}`;
  return [step.run, step.objective, step.steps && `${step.steps} steps`].filter(Boolean).join(", ") || JSON.stringify(step);
}

function count(parameters) {
  if (!parameters) return "";
  return parameters < 1e6 ? parameters.toLocaleString() : `${(parameters / 1e6).toLocaleString(undefined, { maximumFractionDigits: parameters < 1e8 ? 1 : 0 })} million`;
}

function facts(pairs) {
  const made = make("dl", "facts");
  for (const [name, value] of pairs) {
    if (value === "" || value === undefined || value === null || value === false || value === 0) continue;
    const row = make("div");
    row.append(make("dt", "", name), make("dd", "", String(value)));
    made.append(row);
  }
  return made;
}

function list(lines) {
  const made = make("ul", "plain");
  made.append(...lines.map(line => make("li", "", line)));
  return made;
}
