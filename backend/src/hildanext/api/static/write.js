// The Write view: one text continued, with all its figures.
import { drawMasks } from "./chart.js";
import { Settings } from "./settings.js";
import { ENDS, Stage, speed } from "./stage.js";

const $ = id => document.getElementById(id);
const narrow = matchMedia("(max-width: 60rem)");
let asked = null;
const settings = new Settings($("write-settings"));
export const stage = new Stage($("write-stage"), { drawn, busy });

export const stop = () => stage.stop();

export async function generate(values = { ...settings.values(), prompt: $("prompt").value }) {
  asked = values;
  $("engine-line").textContent = "";
  reasons([]);
  if (narrow.matches) $("write-stage").scrollIntoView({ block: "start" });
  $("spoken").textContent = "Generating";
  try {
    const result = await stage.run(values);
    if (result) finish(result);
  } catch { $("spoken").textContent = ""; }
}

function finish(result) {
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

function busy(on) {
  $("go").disabled = on;
  $("stop").disabled = !on;
  $("again").disabled = on || !asked;
}

function drawn(recording, at) {
  if (!recording) {
    for (const name of ["tokens", "forwards", "tpf", "unfused", "width", "edits", "tps", "end"]) $(`n-${name}`).textContent = "–";
    $("chart").replaceChildren();
    $("axis-last").textContent = "";
    return;
  }
  drawMasks($("chart"), recording.frames, at);
  $("axis-last").textContent = recording.frames.length ? `step ${recording.frames.length}` : "";
  numbers(recording, at);
}

function numbers(recording, at) {
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
  $("n-tps").textContent = made ? speed({ tokens: made, seconds }) : "–";
  if (done) $("n-end").textContent = ENDS[recording.result.finish_reason];
  else $("n-end").textContent = recording.stopped ? "you" : "–";
}

$("write-form").onsubmit = event => { event.preventDefault(); generate(); };
$("stop").onclick = stop;
$("again").onclick = () => generate({ ...asked, seed: -1, temperature: asked.temperature || 0.8 });
$("prompt").value = "On a sunny morning the girl Lily walked to the park.";
