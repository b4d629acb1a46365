// The page's frame: tabs, theme, key, status, keyboard; each view is a file of its own.
import { get, health, useKey } from "./api.js";
import * as chat from "./chat.js";
import * as compare from "./compare.js";
import { closeJobs, openJobs } from "./jobs.js";
import { showModel } from "./model.js";
import { fit, offer, offered, serve } from "./settings.js";
import * as write from "./write.js";

const $ = id => document.getElementById(id);
let fitted = "";

/* status and key */
async function watchHealth() {
  let wait = 5000;
  try {
    const state = await health();
    const model = state.model;
    $("status-dot").className = `dot ${state.status}`;
    const parts = model ? [...new Set([model.model, state.engine, model.device])] : [state.status];
    $("status-text").textContent = parts.join(" · ");
    $("status").setAttribute("aria-label", `Model: ${parts.join(", ")}, ${state.status}. Show its card`);
    showModel(state);
    serve((state.models || []).map(one => one.name));
    if (model && fitted !== `${model.model} ${model.block}`) { fit(model); fitted = `${model.model} ${model.block}`; }
    if (!model) wait = 800;
    else if (!offered()) await loadModes();
  } catch { $("status-dot").className = "dot failed"; $("status-text").textContent = "no answer"; }
  setTimeout(watchHealth, wait);
}

async function loadModes() {
  const found = await get("/modes");
  offer(found.modes, found.default.mode);
  compare.ready();
}

document.addEventListener("key-needed", () => { $("key-form").hidden = false; $("key").focus(); });
$("key-form").onsubmit = event => {
  event.preventDefault();
  useKey($("key").value);
  $("key-form").hidden = true;
  loadModes().catch(() => {});
};
$("status").onclick = () => $("model-card").showModal();
$("model-close").onclick = () => $("model-card").close();
$("model-card").onclick = event => { if (event.target === $("model-card")) $("model-card").close(); };

/* tabs */
const tabs = [...document.querySelectorAll("[role=tab]")];
function select(tab) {
  for (const each of tabs) {
    each.setAttribute("aria-selected", String(each === tab));
    each.tabIndex = each === tab ? 0 : -1;
    $(each.getAttribute("aria-controls")).hidden = each !== tab;
  }
  history.replaceState(null, "", tab === tabs[0] ? "#" : `#${tab.id.slice(4)}`);
  if (tab.id === "tab-training") openJobs(); else closeJobs();
  if (tab.id === "tab-chat") chat.open();
}
for (const tab of tabs) {
  tab.onclick = () => select(tab);
  tab.onkeydown = event => {
    if (!["ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    const at = tabs.indexOf(tab), last = tabs.length - 1;
    const next = tabs[{ ArrowRight: (at + 1) % tabs.length, ArrowLeft: (at + last) % tabs.length, Home: 0, End: last }[event.key]];
    event.preventDefault();
    select(next);
    next.focus();
  };
}

/* keyboard */
document.addEventListener("keydown", event => {
  if (event.key === "Escape" && !$("model-card").open) { write.stop(); chat.stop(); compare.stop(); }
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  const view = tabs.find(tab => tab.getAttribute("aria-selected") === "true").id;
  const work = { "tab-write": () => write.generate(), "tab-compare": () => compare.both(), "tab-chat": () => chat.send() }[view];
  if (work) { event.preventDefault(); work(); }
});

/* theme */
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

const named = tabs.find(tab => `#${tab.id.slice(4)}` === location.hash);
if (named) select(named);
watchHealth();
