// A saved recording, played: the events lie in the page itself.
const $ = id => document.getElementById(id);
const [begin, ...events] = JSON.parse($("events").textContent);
const recording = new Recording(begin.infill ? "" : begin.prompt, 0, Boolean(begin.infill));
for (const event of events) recording.take(event.kind, event);
recording.length = recording.blocks.reduce((sum, block) => sum + block.size, 0);
const last = recording.frames.length, view = new View($("canvas"));
let timer = 0;

function draw(at, live) {
  view.draw(at, live);
  $("scrub").value = at;
  $("step").textContent = `step ${at} of ${last}`;
  const so = at < last ? recording.at(at) : { ...recording.at(at), tokens: recording.tokens };
  const block = at > 0 && at < last ? recording.frames[at - 1] : { masks: at ? 0 : 1 };
  const forwards = at < last ? at : recording.result?.metrics?.forwards || at;
  $("n-tokens").textContent = so.tokens;
  $("n-edits").textContent = so.edits;
  $("n-masks").textContent = `${Math.round(100 * block.masks)} %`;
  $("n-tpf").textContent = forwards ? (so.tokens / forwards).toFixed(2) : "–";
}

function pause() {
  clearInterval(timer);
  timer = 0;
  $("play").textContent = "▶";
  $("play").setAttribute("aria-label", "Play");
}

function play() {
  if (timer) { pause(); return; }
  let at = Number($("scrub").value) >= last ? 0 : Number($("scrub").value);
  $("play").textContent = "❚❚";
  $("play").setAttribute("aria-label", "Pause");
  timer = setInterval(() => {
    at += 1;
    draw(at, true);
    if (at >= last) pause();
  }, Math.max(40, Math.min(350, 20000 / last)) * Number($("pace").value));
}

function step(by) { pause(); draw(Math.max(0, Math.min(last, Number($("scrub").value) + by)), false); }

$("play").onclick = play;
$("back").onclick = () => step(-1);
$("on").onclick = () => step(1);
$("scrub").oninput = () => { pause(); draw(Number($("scrub").value), false); };
$("pace").onchange = () => { if (timer) { pause(); play(); } };
$("map").onchange = () => { view.mapped = $("map").checked; step(view.mapped ? last : 0); };
document.addEventListener("keydown", event => {
  if (event.target.matches("select, input[type=range]") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === " " && event.target.tagName !== "BUTTON" && event.target.type !== "checkbox") { event.preventDefault(); play(); }
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = name => { document.documentElement.dataset.theme = name; };
dark.onchange = () => theme(dark.matches ? "dark" : "light");
$("theme").onclick = () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
theme(dark.matches ? "dark" : "light");

$("scrub").max = last;
$("spoken").textContent = `The finished text: ${recording.text}`;
view.show(recording);
draw(last, false);
