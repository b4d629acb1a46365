// The jobs view: what runs, its loss, its log; start, cancel, delete.
import { get, send } from "./api.js";
import { drawLoss } from "./chart.js";
import { pictures } from "./panels.js";

const POLL = 1500;
const cards = new Map();
const $ = id => document.getElementById(id);
let timer = 0, kinds = [], refused = "", unreachable = "";

export function openJobs() { clearTimeout(timer); if (!kinds.length) loadKinds(); refresh(); }
export function closeJobs() { clearTimeout(timer); }

// The form is made of what the server says of its kinds of job: their help, and the values each reads.
async function loadKinds() {
  try { ({ kinds } = await get("/jobs/kinds")); } catch (error) { unreachable = error.message; problem(); return; }
  $("job-command").replaceChildren(...kinds.map(kind => new Option(kind.command)));
  describeKind();
}

function describeKind() {
  const kind = kinds.find(one => one.command === $("job-command").value);
  $("job-help").textContent = kind ? kind.help : "";
  $("job-fields").querySelector("ul").replaceChildren(...(kind ? kind.fields : []).map(field => {
    const item = make("li"), add = make("button", "quiet", field.place);
    add.type = "button";
    add.title = "Set this value";
    add.onclick = () => override(field);
    item.append(add, make("span", "help", `${field.description} (${JSON.stringify(field.default)})`));
    return item;
  }));
}
$("job-command").onchange = describeKind;

function override(field) {
  const box = $("job-set"), value = typeof field.default === "string" ? field.default : JSON.stringify(field.default);
  box.value = [box.value.trim(), `${field.place}=${value}`].filter(Boolean).join("\n");
  box.focus();
}

async function refresh() {
  try {
    const { jobs } = await get("/jobs?limit=50");
    show(jobs);
    unreachable = "";
    problem();
    await Promise.all(jobs.filter(job => worthLooking(job)).map(details));
  } catch (error) { unreachable = error.message; problem(); }
  timer = setTimeout(refresh, POLL);
}

function worthLooking(job) {
  const card = cards.get(job.id);
  const moved = card.seen !== `${job.state} ${job.step}`;
  card.seen = `${job.state} ${job.step}`;
  return moved || job.state === "running" || card.details.open;
}

function show(jobs) {
  $("no-jobs").hidden = jobs.length > 0;
  const list = $("job-list");
  for (const id of [...cards.keys()]) if (!jobs.some(job => job.id === id)) { cards.get(id).root.remove(); cards.delete(id); }
  jobs.forEach((job, index) => {
    const card = cards.get(job.id) || build(job);
    if (list.children[index] !== card.root) list.insertBefore(card.root, list.children[index] || null);
    fill(card, job);
  });
}

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function build(job) {
  const card = { root: make("article", "panel job"), badge: make("span", "badge"), figures: make("div", "job-figures"), id: job.id };
  card.root.setAttribute("aria-label", `${job.command} ${job.id}`);
  const head = make("div", "job-head");
  card.buttons = make("div", "buttons");
  card.cancel = make("button", "", "Cancel");
  card.remove = make("button", "", "Delete");
  card.cancel.onclick = () => act(() => send("POST", `/jobs/${job.id}/cancel`));
  card.remove.onclick = () => twice(card.remove, () => act(() => send("DELETE", `/jobs/${job.id}`)));
  card.buttons.append(card.cancel, card.remove);
  head.append(make("h3", "", job.command), card.badge, make("code", "", job.id), card.buttons);
  card.progress = make("progress");
  card.progress.setAttribute("aria-label", "Steps done");
  card.loss = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  card.loss.setAttribute("class", "loss");
  card.loss.setAttribute("role", "img");
  card.axis = make("div", "loss-axis");
  card.details = make("details");
  card.log = make("pre");
  card.log.tabIndex = 0;
  card.details.append(make("summary", "", "Log"), card.log);
  card.details.ontoggle = () => { card.seen = ""; };
  card.problem = make("div", "problem");
  card.pictures = pictures();
  card.root.append(head, card.progress, card.figures, card.loss, card.axis, card.problem, card.details, card.pictures.root);
  cards.set(job.id, card);
  return card;
}

function fill(card, job) {
  card.badge.textContent = job.state;
  card.badge.className = `badge ${job.state}`;
  card.cancel.hidden = !job.job || !["queued", "running"].includes(job.state);
  card.remove.hidden = !job.job || ["queued", "running", "cancelling"].includes(job.state);
  card.progress.hidden = !job.total || job.state !== "running";
  if (job.total) { card.progress.max = job.total; card.progress.value = job.step || 0; }
  const figures = [];
  if (job.step !== null && job.step > 0) figures.push(["step", job.total ? `${job.step} of ${job.total}` : job.step]);
  if (job.loss !== null) figures.push(["loss", job.loss.toFixed(4)]);
  if (job.eta_seconds !== null) figures.push(["left", duration(job.eta_seconds)]);
  if (job.started) figures.push([job.state === "queued" ? "waiting since" : "started", new Date(job.started).toLocaleString()]);
  card.figures.replaceChildren(...figures.map(([name, value]) => {
    const item = make("span", "", `${name} `);
    item.append(make("b", "", String(value)));
    return item;
  }));
  card.problem.hidden = !job.error;
  card.problem.textContent = job.error || "";
}

async function details(job) {
  const card = cards.get(job.id);
  const { metrics } = await get(`/jobs/${job.id}/metrics?tail=2000`);
  const points = metrics.filter(entry => Number.isFinite(entry.step) && Number.isFinite(entry.loss)).map(entry => [entry.step, entry.loss]);
  const range = drawLoss(card.loss, points);
  card.loss.style.display = card.axis.style.display = range ? "" : "none";
  if (range) {
    card.loss.setAttribute("aria-label", `loss from ${range.high.toFixed(3)} to ${range.low.toFixed(3)}`);
    card.axis.replaceChildren(make("span", "", `step ${range.first}`), make("span", "", `loss ${range.low.toFixed(3)} to ${range.high.toFixed(3)}`), make("span", "", `step ${range.last}`));
  }
  await card.pictures.show(job.id);
  if (card.details.open) {
    const { log, output } = await get(`/jobs/${job.id}/logs?tail=200`);
    const own = log.filter(line => !output.includes(line.slice(line.indexOf(" ") + 1)));
    const text = [...output, ...own].join("\n") || "nothing yet";
    if (card.log.textContent !== text) { card.log.textContent = text; card.log.scrollTop = card.log.scrollHeight; }
  }
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// A second click within four seconds does it: a run's checkpoints go with it.
function twice(button, work) {
  if (button.dataset.asked) { work(); return; }
  const label = button.textContent;
  button.dataset.asked = "yes";
  button.textContent = "Delete for good?";
  setTimeout(() => { delete button.dataset.asked; button.textContent = label; }, 4000);
}

async function act(work) {
  try { await work(); refused = ""; } catch (error) { refused = error.message; }
  problem();
  openJobs();
}

// What the server refused stays until something else is asked of it; that it does not answer, until it does.
function problem() {
  const text = refused || unreachable;
  $("job-problem").hidden = !text;
  $("job-problem").textContent = text;
}

$("job-form").onsubmit = event => {
  event.preventDefault();
  const body = { command: $("job-command").value, set: $("job-set").value.split("\n").map(line => line.trim()).filter(Boolean) };
  if ($("job-config").value.trim()) body.config = $("job-config").value.trim();
  act(() => send("POST", "/jobs", body));
};
