// The page: controls, one generation at a time, replay, tabs, theme, status.
import { events, get, health, useKey } from "./api.js";
import { Recording, View } from "./canvas.js";
import { drawMasks } from "./chart.js";
import { closeJobs, openJobs } from "./jobs.js";

const $ = id => document.getElementById(id);
const view = new View($("canvas"));
const touched = { "tau-mask": false, "tau-edit": false };
let presets = {}, recording = null, running = null, drawn = false, playing = 0;

/* status and key */
async function watchHealth() {
  let wait = 5000;
  try {
    const state = await health();
    const model = state.model;
    $("status-dot").className = `dot ${state.status}`;
    const parts = model ? [...new Set([model.model, state.engine, model.device])] : [state.status];
    $("status-text").textContent = parts.join(" · ");
    const lines = [`${state.status}${state.problem ? `: ${state.problem}` : ""}`];
    if (model) lines.push(`${model.dtype} (${model.dtype_reason}), window ${model.window}, block ${model.block}`);
    lines.push(...state.reasons.map(reason => `not used: ${reason}`));
    $("status-detail").textContent = lines.join("\n");
    if (model && !$("block").children.length) fillBlocks(model);
    if (!model) wait = 800;
    else if (!Object.keys(presets).length) await loadModes();
  } catch { $("status-dot").className = "dot failed"; $("status-text").textContent = "no answer"; }
  setTimeout(watchHealth, wait);
}

document.addEventListener("key-needed", () => { $("key-form").hidden = false; $("key").focus(); });
$("key-form").onsubmit = event => {
  event.preventDefault();
  useKey($("key").value);
  $("key-form").hidden = true;
  loadModes().catch(() => {});
};

/* controls */
function fillBlocks(model) {
  const sizes = [...new Set([1, 4, 8, 16, 32, 64, model.block])].filter(Boolean).sort((a, b) => a - b);
  const options = sizes.map(size => new Option(String(size), String(size), size === model.block, size === model.block));
  $("block").replaceChildren(...options);
  if (model.window) $("length").max = model.window;
}

async function loadModes() {
  const found = await get("/modes");
  presets = found.modes;
  const names = { S_MODE: "Speed", Q_MODE: "Quality", CONSERVATIVE: "Careful" };
  const box = document.createElement("div");
  for (const mode of Object.keys(presets)) {
    const label = document.createElement("label");
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "mode", value: mode, checked: mode === found.default.mode });
    input.onchange = () => { touched["tau-mask"] = touched["tau-edit"] = false; $("no-edit").checked = false; showTaus(); };
    label.append(input, names[mode] || mode);
    label.title = mode;
    box.append(label);
  }
  $("modes").querySelector("div")?.remove();
  $("modes").append(box);
  showTaus();
}

const mode = () => document.querySelector("input[name=mode]:checked")?.value;

function showTaus() {
  const preset = presets[mode()] || {};
  for (const [id, key] of [["tau-mask", "tau_mask"], ["tau-edit", "tau_edit"]]) {
    if (!touched[id] && preset[key] !== undefined) $(id).value = preset[key];
    const never = id === "tau-edit" && $("no-edit").checked;
    $(`${id}-value`).textContent = never ? "never" : `${Number($(id).value).toFixed(2)}${touched[id] ? "" : " preset"}`;
    $(`${id}-value`).className = touched[id] || never ? "" : "preset";
  }
  $("tau-edit").disabled = $("no-edit").checked;
}
for (const id of Object.keys(touched)) $(id).oninput = () => { touched[id] = true; showTaus(); };
$("no-edit").onchange = showTaus;

function body() {
  const text = $("prompt").value;
  const values = { stream: true, max_new_tokens: Number($("length").value), seed: $("seed").value === "" ? -1 : Number($("seed").value) };
  if ($("chat").checked) values.messages = [{ role: "user", content: text }]; else values.prompt = text;
  if (mode()) values.mode = mode();
  if (touched["tau-mask"]) values.tau_mask = Number($("tau-mask").value);
  if ($("no-edit").checked) values.tau_edit = null;
  else if (touched["tau-edit"]) values.tau_edit = Number($("tau-edit").value);
  if (Number($("temperature").value)) values.temperature = Number($("temperature").value);
  if ($("block").value) values.block = Number($("block").value);
  return values;
}

/* one generation */
async function generate() {
  stop();
  const mine = running = new AbortController();
  problem("");
  $("engine-line").textContent = "";
  reasons([]);
  const values = body();
  recording = new Recording($("chat").checked ? "" : values.prompt, values.max_new_tokens);
  const own = recording;
  shown = 0;
  view.show(own);
  busy(true);
  if (narrow.matches) $("canvas").parentElement.scrollIntoView({ block: "start" });
  $("spoken").textContent = "Generating";
  try {
    for await (const { event, data } of events("/generate", values, mine.signal)) {
      if (event === "draft") own.draft(data);
      else if (event === "commit") own.commit(data);
      else if (event === "done") finish(own, data);
      else if (event === "error") throw new Error(data.error.message);
      schedule();
    }
  } catch (error) {
    if (error.name !== "AbortError") problem(error.message);
    else own.stopped = true;
    if (!own.frames.length) { view.clear(); recording = null; blank(); }
  } finally {
    if (running === mine) { running = null; busy(false); }
    schedule();
  }
}

function finish(own, result) {
  own.end(result);
  const figures = result.metrics;
  $("engine-line").textContent = `Engine ${result.engine}${result.exact ? ", exact" : ""}, ${figures.policy || "own policy"}, first block after ${figures.first_block_seconds.toFixed(2)} s${result.seed === null ? "" : `, seed ${result.seed}`}.`;
  reasons(result.reasons);
  $("spoken").textContent = `Done: ${figures.tokens} tokens in ${figures.forwards} forwards. ${result.text}`;
}

function reasons(found) {
  const names = [...new Set(found.map(reason => reason.split(":")[0]))];
  $("reasons").hidden = !found.length;
  $("reasons-names").textContent = `Not used: ${names.join(", ")}`;
  $("reasons-list").replaceChildren(...found.map(reason => Object.assign(document.createElement("li"), { textContent: reason })));
}

function stop() { if (running) { running.abort(); running = null; busy(false); } }

function busy(on) {
  $("go").disabled = on;
  $("stop").disabled = !on;
  $("play").disabled = on;
  $("scrub").disabled = on || !recording;
  pause();
}

function blank() {
  for (const name of ["tokens", "forwards", "tpf", "unfused", "width", "edits", "tps", "end"]) $(`n-${name}`).textContent = "–";
  $("chart").replaceChildren();
  $("step").textContent = "step 0";
  $("axis-last").textContent = "";
}

function problem(text) { $("problem").hidden = !text; $("problem").textContent = text; }

/* drawing: at most once per animation frame, and a fast model is slowed to what eyes can follow */
const STEP_MS = 45, BEHIND = 40;
let shown = 0, last = 0, looks = "";
const narrow = matchMedia("(max-width: 60rem)");
function schedule() {
  if (drawn) return;
  drawn = true;
  requestAnimationFrame(advance);
}

function advance(now) {
  drawn = false;
  if (!recording || playing) return;
  const arrived = recording.frames.length;
  const pace = Math.max(1, (arrived - shown) / BEHIND) / STEP_MS;
  shown = Math.min(arrived, shown + Math.min(100, now - last) * pace);
  last = now;
  if (arrived - shown < 1 && !running) shown = arrived;
  const at = Math.floor(shown), live = Boolean(running) || shown < arrived;
  const look = `${at} ${arrived} ${live} ${Boolean(recording.result)} ${recording.stopped} ${recording.started}`;
  if (look !== looks) draw(at, live);
  looks = look;
  if (shown < arrived) schedule();
}

function draw(at, live) {
  if (!recording) return;
  view.draw(at, live);
  $("scrub").max = recording.frames.length;
  $("scrub").value = at;
  $("step").textContent = `step ${at} of ${recording.frames.length}`;
  drawMasks($("chart"), recording.frames, at);
  $("axis-last").textContent = recording.frames.length ? `step ${recording.frames.length}` : "";
  numbers(at);
}

function numbers(at) {
  const finished = at >= recording.frames.length;
  const done = finished ? recording.result?.metrics : undefined;
  const so = recording.at(at);
  const seconds = recording.result ? recording.result.metrics.seconds : (performance.now() - recording.started) / 1000;
  const tokens = done ? done.tokens : so.tokens;
  const forwards = done ? done.forwards : so.forwards;
  const made = recording.result ? recording.result.metrics.tokens : recording.tokens;
  $("n-tokens").textContent = tokens;
  $("n-forwards").textContent = forwards;
  $("n-tpf").textContent = forwards ? (done ? done.tokens_per_forward : tokens / forwards).toFixed(2) : "–";
  $("n-unfused").textContent = done?.tokens_per_forward_unfused?.toFixed(2) ?? "–";
  $("n-width").textContent = done?.positions_per_forward?.toFixed(1) ?? "–";
  $("n-edits").textContent = done?.edits_applied.length ? done.edits_applied.reduce((a, b) => a + b, 0) : so.edits;
  $("n-tps").textContent = made ? (made / Math.max(seconds, 1e-3)).toFixed(made / seconds > 100 ? 0 : 1) : "–";
  if (done) $("n-end").textContent = { eos: "end of text", length: "length", stop: "stop string", cancelled: "you" }[recording.result.finish_reason];
  else $("n-end").textContent = recording.stopped ? "you" : "–";
}

/* replay */
function pause() { clearInterval(playing); playing = 0; $("play").textContent = "▶"; $("play").setAttribute("aria-label", "Replay"); }

$("play").onclick = () => {
  if (playing) { pause(); return; }
  if (!recording) return;
  shown = recording.frames.length;
  let at = Number($("scrub").value) >= recording.frames.length ? 0 : Number($("scrub").value);
  $("play").textContent = "❚❚";
  $("play").setAttribute("aria-label", "Pause");
  const pace = Math.max(40, Math.min(220, 9000 / recording.frames.length));
  playing = setInterval(() => {
    at += 1;
    draw(at, true);
    if (at >= recording.frames.length) pause();
  }, pace);
};
$("scrub").oninput = () => { pause(); shown = recording.frames.length; draw(Number($("scrub").value), false); };

$("generate-form").onsubmit = event => { event.preventDefault(); generate(); };
$("stop").onclick = stop;
document.addEventListener("keydown", event => {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !$("view-generate").hidden) { event.preventDefault(); generate(); }
});

/* tabs and theme */
const tabs = [...document.querySelectorAll("[role=tab]")];
function select(tab) {
  for (const each of tabs) {
    each.setAttribute("aria-selected", String(each === tab));
    each.tabIndex = each === tab ? 0 : -1;
    $(each.getAttribute("aria-controls")).hidden = each !== tab;
  }
  history.replaceState(null, "", tab.id === "tab-jobs" ? "#jobs" : "#");
  if (tab.id === "tab-jobs") openJobs(); else closeJobs();
}
for (const tab of tabs) {
  tab.onclick = () => select(tab);
  tab.onkeydown = event => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const next = tabs[(tabs.indexOf(tab) + (event.key === "ArrowRight" ? 1 : tabs.length - 1)) % tabs.length];
    select(next);
    next.focus();
  };
}

const dark = matchMedia("(prefers-color-scheme: dark)");
const THEMES = ["auto", "light", "dark"];
function theme(name) {
  localStorage.setItem("hildanext-theme", name);
  document.documentElement.dataset.theme = name === "auto" ? (dark.matches ? "dark" : "light") : name;
  $("theme").textContent = name[0].toUpperCase() + name.slice(1);
  $("theme").setAttribute("aria-label", `Colour theme: ${name === "auto" ? "as the system" : name}`);
}
$("theme").onclick = () => theme(THEMES[(THEMES.indexOf(localStorage.getItem("hildanext-theme")) + 1) % 3]);
dark.onchange = () => theme(localStorage.getItem("hildanext-theme"));
theme(THEMES.includes(localStorage.getItem("hildanext-theme")) ? localStorage.getItem("hildanext-theme") : "auto");

$("prompt").value = "On a sunny morning the girl Lily walked to the park.";
if (location.hash === "#jobs") select($("tab-jobs"));
watchHealth();
