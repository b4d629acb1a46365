// A recording as a file: player, GIF and SVG are drawn by the server from the events, the events themselves are here.
import { file } from "./api.js";

const KINDS = [["html", "Player (HTML)"], ["gif", "Animated GIF"], ["svg", "Animated SVG"], ["jsonl", "Events (JSON lines)"]];

// Puts a menu into `root`; current() is the recording to save.
export function saveMenu(root, current) {
  const select = document.createElement("select");
  select.setAttribute("aria-label", "Save how it was decoded");
  select.append(new Option("Save …", ""), ...KINDS.map(([kind, name]) => new Option(name, kind)));
  select.onchange = async () => {
    const kind = select.value, recording = current();
    select.value = "";
    if (!kind || !recording) return;
    select.disabled = true;
    try { download(await content(kind, recording), `decode.${kind}`); select.options[0].textContent = "Save …"; }
    catch (error) { select.options[0].textContent = "Not saved"; select.title = error.message; }
    finally { select.disabled = false; }
  };
  root.append(select);
  return select;
}

// The events in the format of docs/events.md; what was stopped ends as the server would have ended it.
export function lines(recording) {
  const title = recording.prompt || recording.asked?.messages?.at(-1)?.content || "hildanext";
  const begin = { kind: "begin", format: "block-diffusion-events", version: 1, prompt: recording.prompt, title: title.slice(0, 120) };
  const found = [begin, ...recording.events];
  if (!recording.result) {
    const commits = recording.events.filter(event => event.kind === "commit");
    const ids = commits.flatMap(event => event.token_ids);
    found.push({ kind: "done", request: commits[0]?.request, text: recording.text, token_ids: ids, finish_reason: "cancelled" });
  }
  // over HTTP done names no request: its stream has only one
  const request = recording.events.find(event => event.request !== undefined)?.request || 0;
  return found.map(event => event.kind === "begin" ? event : { ...event, request });
}

async function content(kind, recording) {
  const events = lines(recording);
  if (kind === "jsonl") return new Blob([events.map(event => `${JSON.stringify(event)}\n`).join("")], { type: "application/x-ndjson" });
  return file("/pictures", { format: kind, title: events[0].title, events });
}

function download(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
