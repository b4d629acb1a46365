// The training view: what runs, its curves, plan, log; start, cancel, delete.
import { get, send } from "./api.js";
import { Curves, series } from "./curves.js";
import { body, load, loaded } from "./job_form.js";
import { make, twice } from "./make.js";
import { pictures } from "./panels.js";
import { planTable, showPlan } from "./plan.js";

const POLL = 1500;
const cards = new Map();
const $ = id => document.getElementById(id);
let timer = 0, refused = "", unreachable = "";

export function openJobs() {
  clearTimeout(timer);
  if (!loaded()) load().catch(error => { unreachable = error.message; problem(); });
  refresh();
}
export function closeJobs() { clearTimeout(timer); }

async function refresh() {
  clearTimeout(timer);
  try {
    const { jobs } = await get("/jobs?limit=50");
    show(jobs);
    unreachable = "";
    problem();
    await Promise.all(jobs.filter(job => worthLooking(job)).map(details));
  } catch (error) { unreachable = error.message; problem(); }
  clearTimeout(timer);
  if (!$("view-training").hidden) timer = setTimeout(refresh, POLL);
}

function worthLooking(job) {
  const card = cards.get(job.id);
  const moved = card.seen !== `${job.state} ${job.step}`;
  card.seen = `${job.state} ${job.step}`;
  return moved || job.state === "running";
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
  card.curves = new Curves();
  card.problem = make("div", "problem");
  card.plan = fold("Plan");
  card.pictures = pictures();
  card.log = fold("Log");
  card.text = make("pre");
  card.text.tabIndex = 0;
  card.log.append(card.text);
  for (const folded of [card.plan, card.pictures.root, card.log]) folded.ontoggle = () => { if (folded.open) { card.seen = ""; refresh(); } };
  card.root.append(head, card.progress, card.figures, card.curves.root, card.problem, card.plan, card.pictures.root, card.log);
  cards.set(job.id, card);
  return card;
}

function fold(name) {
  const made = make("details");
  made.append(make("summary", "", name));
  return made;
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
  const [{ metrics }, { plan }] = await Promise.all([get(`/jobs/${job.id}/metrics?tail=2000`), card.planned ? { plan: card.planned } : get(`/jobs/${job.id}`)]);
  if (plan) card.planned = plan;
  card.curves.show(series(metrics), plan?.stages || []);
  card.plan.hidden = !plan;
  if (plan && card.plan.open) card.plan.replaceChildren(card.plan.firstChild, planTable(plan, job.step));
  await card.pictures.show(job.id);
  if (card.log.open) {
    const { log, output } = await get(`/jobs/${job.id}/logs?tail=200`);
    const own = log.filter(line => !output.includes(line.slice(line.indexOf(" ") + 1)));
    const text = [...output, ...own].join("\n") || "nothing yet";
    if (card.text.textContent !== text) { card.text.textContent = text; card.text.scrollTop = card.text.scrollHeight; }
  }
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
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

$("job-form").onsubmit = event => { event.preventDefault(); act(() => send("POST", "/jobs", body())); };
$("job-plan").onclick = async () => {
  $("job-plan").disabled = true;
  try { await showPlan($("plan"), body()); refused = ""; } catch (error) { refused = error.message; }
  $("job-plan").disabled = false;
  problem();
};
