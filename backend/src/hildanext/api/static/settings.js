// The settings of a generation, drawn from a template: mode, thresholds, length, block, temperature, seed.
const NAMES = { S_MODE: "Speed", Q_MODE: "Quality", CONSERVATIVE: "Careful" };
const known = { modes: {}, mode: "", sizes: [], block: 0, window: 0, own: {}, models: [] };
const all = [];

// What the server offers, for every form on the page.
export function offer(modes, mode) { Object.assign(known, { modes, mode }); for (const one of all) one.fillModes(); }
export function fit(model) {
  const sizes = [...new Set([1, 4, 8, 16, 32, 64, model.block])].filter(Boolean).sort((a, b) => a - b);
  // a model folder may carry thresholds of its own, which then are what a mode means
  Object.assign(known, { sizes, block: model.block, window: model.window, own: model.about?.presets || {} });
  for (const one of all) { one.fillBlocks(); one.show(); }
}
export function serve(names) {
  if (names.join("|") === known.models.join("|")) return;
  known.models = names;
  for (const one of all) one.fillModels();
}
export const offered = () => Object.keys(known.modes).length > 0;
export const nameOf = mode => NAMES[mode] || mode;

export class Settings {
  // prefix: of the ids, so that several forms may stand on one page; without: parts to leave out.
  constructor(root, prefix = "", without = []) {
    root.append(document.getElementById("settings-template").content.cloneNode(true));
    this.root = root; this.prefix = prefix; this.parts = {}; this.touched = { "tau-mask": false, "tau-edit": false };
    for (const element of root.querySelectorAll("[data-part]")) {
      const name = element.dataset.part;
      this.parts[name] = element;
      element.id = prefix + name;
      if (without.includes(name)) element.closest("label").remove();
    }
    for (const label of root.querySelectorAll("[data-for]")) label.htmlFor = prefix + label.dataset.for;
    for (const name of Object.keys(this.touched)) {
      this.parts[`${name}-value`].htmlFor = prefix + name;
      this.parts[name].oninput = () => { this.touched[name] = true; this.show(); };
      const help = this.parts[name].parentElement.querySelector(".help");
      help.id = `${prefix}${name}-help`;
      this.parts[name].setAttribute("aria-describedby", help.id);
    }
    this.parts["no-edit"].onchange = this.parts.model.onchange = () => this.show();
    all.push(this);
    this.fillModes();
    this.fillBlocks();
    this.fillModels();
  }

  // One model needs no choice.
  fillModels() {
    this.parts.models.hidden = known.models.length < 2;
    this.parts.model.replaceChildren(...known.models.map(name => new Option(name)));
  }

  // Whether the model is the one whose thresholds and block are known here.
  get first() { return !this.parts.model.value || this.parts.model.value === known.models[0]; }

  fillModes() {
    const box = document.createElement("div");
    for (const mode of Object.keys(known.modes)) {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "radio", name: `${this.prefix}mode`, value: mode, checked: mode === known.mode });
      input.onchange = () => this.reset();
      label.append(input, nameOf(mode));
      label.title = mode;
      box.append(label);
    }
    this.parts.modes.querySelector("div")?.remove();
    if (box.childElementCount) this.parts.modes.append(box);
    this.show();
  }

  fillBlocks() {
    this.parts.block.replaceChildren(...known.sizes.map(size => new Option(String(size), String(size), size === known.block, size === known.block)));
    if (known.window) this.parts.length.max = known.window;
  }

  reset() { this.touched["tau-mask"] = this.touched["tau-edit"] = false; this.parts["no-edit"].checked = false; this.show(); }

  choose(mode) {
    const input = this.parts.modes.querySelector(`input[value="${CSS.escape(mode)}"]`);
    if (input) { input.checked = true; this.reset(); }
  }

  get mode() { return this.parts.modes.querySelector("input:checked")?.value; }
  get length() { return Number(this.parts.length.value); }

  show() {
    const preset = { ...known.modes[this.mode], ...(this.first ? known.own[this.mode] : {}) };
    for (const [name, key] of [["tau-mask", "tau_mask"], ["tau-edit", "tau_edit"]]) {
      const input = this.parts[name], output = this.parts[`${name}-value`];
      if (!this.touched[name] && preset[key] !== undefined && preset[key] !== null) input.value = preset[key];
      const never = name === "tau-edit" && (this.parts["no-edit"].checked || (!this.touched[name] && preset[key] === null));
      output.textContent = never ? "never" : `${Number(input.value).toFixed(2)}${this.touched[name] ? "" : " preset"}`;
      output.className = this.touched[name] || never ? "" : "preset";
    }
    this.parts["tau-edit"].disabled = this.parts["no-edit"].checked;
  }

  // The fields of POST /generate.
  values() {
    const { parts, touched } = this;
    const values = { max_new_tokens: this.length, seed: !parts.seed || !parts.seed.isConnected || parts.seed.value === "" ? -1 : Number(parts.seed.value) };
    if (!this.first) values.model = parts.model.value;
    if (this.mode) values.mode = this.mode;
    if (touched["tau-mask"]) values.tau_mask = Number(parts["tau-mask"].value);
    if (parts["no-edit"].checked) values.tau_edit = null;
    else if (touched["tau-edit"]) values.tau_edit = Number(parts["tau-edit"].value);
    if (Number(parts.temperature.value)) values.temperature = Number(parts.temperature.value);
    if (parts.block.value && (this.first || Number(parts.block.value) !== known.block)) values.block = Number(parts.block.value);
    return values;
  }
}
