// The page that fills a gap: a selected piece of a text is written anew between what stands around it.
// A told length is streamed as it fills in; a chosen one comes whole, since which length it is is known last.
import { events, get, send, useKey } from "./api.js";
import { Recording, View } from "./canvas.js";

const $ = id => document.getElementById(id);
const view = new View($("canvas")), before = [];
const AROUND = 160;
let running = null, piece = [0, 0];
const theme = localStorage.getItem("hildanext-theme"), dark = matchMedia("(prefers-color-scheme: dark)").matches;
document.documentElement.dataset.theme = ["light", "dark"].includes(theme) ? theme : dark ? "dark" : "light";

$("text").value = "On a sunny morning the girl Lily walked to the park. She had brought the little dog Waffle. At the park Lily met a girl called Anna. Lily had a red ball in her bag. Anna had some fresh bread in her box. They ate the fresh bread and played happily with the red ball. But a big wolf took the red ball away. Now Lily had no ball and felt so sad.";

const told = () => document.querySelector("input[name=length]:checked").value === "told";

async function models() {
  const found = (await get("/v1/models")).data.map(one => one.id);
  $("model").replaceChildren(...found.map(name => Object.assign(document.createElement("option"), { value: name, textContent: name })));
}

function select() {
  const field = $("text"), [start, stop] = [field.selectionStart, field.selectionEnd];
  if (document.activeElement === field || stop > start) piece = [start, stop];
  const size = piece[1] - piece[0];
  $("selected").textContent = size ? `${size} letters are selected.` : "Nothing is selected: the gap is where the cursor stands.";
}

function problem(text) { $("problem").hidden = !text; $("problem").textContent = text; }

function busy(on) {
  $("go").disabled = on;
  $("stop").disabled = !on;
  $("undo").disabled = on || !before.length;
  $("text").readOnly = on;
}

async function regenerate() {
  if (running) return;
  const text = $("text").value, [start, stop] = piece;
  // the space before a piece belongs to it, as tokens carry it
  const from = start && text[start - 1] === " " ? start - 1 : start;
  const ask = { prompt: text.slice(0, from), suffix: text.slice(stop), temperature: Number($("temperature").value), seed: -1 };
  problem("");
  if (!ask.suffix) { problem("Nothing follows the selection. Leave text behind it, or continue it under Write."); return; }
  const mine = running = new AbortController(), since = performance.now();
  busy(true);
  around(ask);
  try {
    const found = told() ? await streamed(ask, mine.signal) : await chosen(ask, mine.signal);
    if (!found || mine.signal.aborted) return;
    before.push({ text, piece });
    $("text").value = ask.prompt + found.text + ask.suffix;
    piece = [ask.prompt.length, ask.prompt.length + found.text.length];
    $("text").focus();
    $("text").setSelectionRange(...piece);
    figures(found, (performance.now() - since) / 1000);
    select();
  } catch (error) {
    if (error.name !== "AbortError") { problem(error.message); $("shown").hidden = true; }
  } finally {
    if (running === mine) running = null;
    busy(false);
  }
}

function around(ask) {
  const short = text => text.length > AROUND;
  $("before").textContent = (short(ask.prompt) ? "…" : "") + ask.prompt.slice(-AROUND);
  $("after").textContent = ask.suffix.slice(0, AROUND) + (short(ask.suffix) ? "…" : "");
  view.clear();
  $("shown").hidden = false;
  for (const name of ["tokens", "tried", "forwards", "seconds"]) $(`n-${name}`).textContent = "–";
  $("notes").replaceChildren();
}

async function streamed(ask, signal) {
  const size = Number($("tokens").value), recording = new Recording("", size);
  view.show(recording);
  for await (const { event, data } of events("/generate", { ...ask, model: $("model").value, max_new_tokens: size, stream: true }, signal)) {
    if (event === "error") throw new Error(data.error.message);
    recording.take(event, data);
    view.draw(recording.frames.length, true);
    await new Promise(done => requestAnimationFrame(done));
  }
  const result = recording.result;
  view.draw(recording.frames.length, false);
  return result && { text: result.text, tokens: result.metrics.tokens, tried: 1, forwards: result.metrics.forwards, notes: result.notes };
}

async function chosen(ask, signal) {
  $("canvas").textContent = " … ";
  const body = { ...ask, model: $("model").value, max_tokens: Number($("tokens").value) };
  const reply = await send("POST", "/v1/completions", body, signal);
  const [choice] = reply.choices, notes = reply.hildanext.notes;
  $("canvas").textContent = choice.text;
  const tried = notes.map(note => note.match(/best of (\d+) lengths/)).find(found => found);
  return { text: choice.text, tokens: reply.usage.completion_tokens, tried: tried ? Number(tried[1]) : 1, forwards: reply.hildanext.forwards, notes };
}

function figures(found, seconds) {
  $("n-tokens").textContent = found.tokens;
  $("n-tried").textContent = found.tried;
  $("n-forwards").textContent = found.forwards;
  $("n-seconds").textContent = seconds.toFixed(2);
  $("notes").replaceChildren(...found.notes.map(note => Object.assign(document.createElement("li"), { textContent: note })));
}

function undo() {
  const last = before.pop();
  if (!last) return;
  $("text").value = last.text;
  piece = last.piece;
  $("text").focus();
  $("text").setSelectionRange(...piece);
  $("shown").hidden = true;
  busy(false);
  select();
}

function words() {
  $("tokens-label").textContent = told() ? "Tokens" : "At most, tokens";
  $("length-help").textContent = told() ? "The piece has exactly as many tokens, and fills in as you watch."
    : "A gap has no end of its own: several lengths are filled, and the shortest of about the likeliest texts is taken.";
}

for (const each of document.querySelectorAll("input[name=length]")) each.onchange = words;
for (const name of ["select", "keyup", "mouseup", "input"]) $("text").addEventListener(name, select);
$("fill-form").onsubmit = event => { event.preventDefault(); regenerate(); };
$("stop").onclick = () => running?.abort();
$("undo").onclick = undo;
document.addEventListener("keydown", event => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); regenerate(); }
});
document.addEventListener("key-needed", () => { $("key-form").hidden = false; $("key").focus(); });
$("key-form").onsubmit = event => { event.preventDefault(); useKey($("key").value); $("key-form").hidden = true; models().catch(() => {}); };
models().catch(error => problem(error.message));
