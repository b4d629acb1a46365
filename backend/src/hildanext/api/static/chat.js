// The Chat view: conversations, a system prompt, answers that keep their steps, regenerate with a fresh seed.
import { make, twice } from "./make.js";
import { Settings } from "./settings.js";
import { Stage, copy, speed } from "./stage.js";
import { fresh, keep, load } from "./store.js";

const $ = id => document.getElementById(id);
const WARM = 0.8;
const settings = new Settings($("chat-settings"), "chat-");
const stages = new Map(); // turn -> the stage it was written on, for as long as the page is open
let conversations = load(), current = conversations[0] || fresh(), running = null;
const narrow = matchMedia("(max-width: 60rem)");

export const stop = () => running?.stop();

export function open() { if (!$("thread").childElementCount) show(); }

function show() {
  $("thread").replaceChildren(...current.turns.map((turn, index) => element(turn, index)));
  $("chat-empty").hidden = current.turns.length > 0;
  $("system").value = current.system;
  problem("");
  list();
}

function list() {
  const others = conversations.filter(one => one.turns.length);
  $("chat-none").hidden = others.length > 0;
  $("chat-list").replaceChildren(...others.map(one => {
    const item = make("li"), go = make("button", "quiet title", one.title || "untitled"), gone = make("button", "quiet gone", "×");
    go.type = gone.type = "button";
    if (one === current) go.setAttribute("aria-current", "true");
    go.onclick = () => { stop(); current = one; show(); $("say").focus(); };
    gone.setAttribute("aria-label", `Delete ${one.title || "conversation"}`);
    gone.onclick = () => twice(gone, () => remove(one), "Delete?");
    item.append(go, gone);
    return item;
  }));
}

function remove(one) {
  if (one === current) { stop(); current = fresh(); }
  conversations = conversations.filter(other => other !== one);
  saved();
  show();
}

function saved() {
  if (!conversations.includes(current) && current.turns.length) conversations.unshift(current);
  if (!keep(conversations)) problem("This browser has no room for all conversations; the oldest are not kept.");
  list();
}

function problem(text) { $("chat-problem").hidden = !text; $("chat-problem").textContent = text; }

/* the thread */
function element(turn, index) {
  const item = make("li", `turn ${turn.role}`);
  item.append(make("span", "who", turn.role === "user" ? "You" : "Model"));
  const stage = stages.get(turn);
  item.append(stage ? stage.root : make("div", "text", turn.content));
  if (turn.role === "assistant") item.append(tools(turn, index, stage));
  return item;
}

function tools(turn, index, stage) {
  const row = make("div", "turn-tools"), last = index === current.turns.length - 1;
  const button = (name, work) => { const made = make("button", "quiet", name); made.type = "button"; made.onclick = () => work(made); row.append(made); return made; };
  button("Copy", made => copy(made, turn.content));
  if (last) button("Regenerate", regenerate).title = `The same question with a fresh seed; drawn at temperature ${WARM} where it is 0, since the surest text has no other`;
  if (stage) {
    const steps = button("Steps", () => { const open = stage.root.classList.toggle("open"); steps.setAttribute("aria-expanded", String(open)); });
    steps.setAttribute("aria-expanded", "false");
  }
  if (turn.figures) row.append(make("span", "figures", turn.figures));
  return row;
}

function busy(on) {
  $("send").disabled = on;
  $("chat-stop").disabled = !on;
  for (const button of document.querySelectorAll(".turn-tools button")) button.disabled = on;
}

/* asking */
export async function send() {
  const text = $("say").value.trim();
  if (!text || running) return;
  $("say").value = "";
  current.turns.push({ role: "user", content: text });
  current.title ||= text.slice(0, 48);
  await answer(settings.values());
}

function regenerate() {
  if (running || current.turns.at(-1)?.role !== "assistant") return;
  stages.delete(current.turns.pop());
  const values = settings.values();
  answer({ ...values, seed: -1, temperature: values.temperature || WARM });
}

async function answer(values) {
  current.system = $("system").value;
  const own = current, system = own.system.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...own.turns.map(({ role, content }) => ({ role, content }))];
  const turn = { role: "assistant", content: "" }, stage = Stage.made({});
  stages.set(turn, stage);
  own.turns.push(turn);
  saved();
  show();
  running = stage;
  busy(true);
  $("thread").lastElementChild.scrollIntoView({ block: "nearest" });
  $("chat-spoken").textContent = "Answering";
  let refused = "";
  try { await stage.run({ ...values, messages }, ""); } catch (error) { refused = error.message; }
  running = null;
  turn.content = stage.recording?.text || "";
  turn.figures = figures(stage.recording, values);
  if (!turn.content && !stage.recording) { stages.delete(turn); own.turns.splice(own.turns.indexOf(turn), 1); }
  if (refused && own.turns.at(-1)?.role === "user") { $("say").value = own.turns.pop().content; }
  busy(false);
  saved();
  if (own === current) show();
  problem(refused);
  $("chat-spoken").textContent = refused ? "" : turn.content;
}

function figures(recording, values) {
  if (!recording?.result) return recording ? "stopped" : "";
  const { metrics, seed, finish_reason: reason } = recording.result;
  const said = [`${metrics.tokens} tokens`, `${metrics.forwards} forwards`, `${metrics.tokens_per_forward.toFixed(2)} per forward`, `${speed(metrics)} tokens/s`];
  if (reason === "length") said.push("cut at the length");
  if (values.temperature) said.push(`temperature ${values.temperature}`, `seed ${seed}`);
  return said.join(" · ");
}

$("chat-form").onsubmit = event => { event.preventDefault(); send(); };
$("chat-stop").onclick = stop;
$("chat-new").onclick = () => { stop(); current = fresh(); show(); $("say").focus(); };
$("system").onchange = () => { current.system = $("system").value; saved(); };
$("say").onkeydown = event => {
  if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.metaKey || event.isComposing) return;
  event.preventDefault();
  send();
};
if (narrow.matches) $("chat-history").open = false;
