// One canvas with its scrubber: runs a generation, draws it at most once per frame, replays it.
import { events } from "./api.js";
import { Recording, View } from "./canvas.js";
import { saveMenu } from "./save.js";

const STEP_MS = 45, BEHIND = 40;

export class Stage {
  // root holds the parts; hooks: drawn(recording, at, live), busy(on).
  constructor(root, hooks = {}) {
    this.root = root; this.hooks = hooks; this.parts = {};
    for (const element of root.querySelectorAll("[data-part]")) this.parts[element.dataset.part] = element;
    this.view = new View(this.parts.canvas);
    this.recording = null; this.running = null; this.shown = 0; this.last = 0; this.looks = ""; this.waiting = false; this.playing = 0;
    this.parts.play.onclick = () => this.replay();
    this.parts.scrub.oninput = () => { this.pause(); this.shown = this.recording.frames.length; this.draw(Number(this.parts.scrub.value), false); };
    this.parts.map.onchange = () => this.map(this.parts.map.checked);
    this.parts.copy.onclick = () => copy(this.parts.copy, this.recording?.text || "");
    this.save = saveMenu(this.parts.save, () => this.recording);
    this.busy(false);
  }

  static made(hooks) {
    const piece = document.getElementById("stage-template").content.cloneNode(true);
    return new Stage(piece.firstElementChild, hooks);
  }

  // The result, null where it was stopped. Throws what the server refused.
  async run(values, echo = values.prompt || "") {
    this.stop();
    const mine = this.running = new AbortController();
    this.problem("");
    const own = this.recording = new Recording(echo, values.max_new_tokens);
    own.asked = values;
    this.shown = 0;
    this.view.show(own);
    this.map(false);
    this.busy(true);
    try {
      for await (const { event, data } of events("/generate", { ...values, stream: true }, mine.signal)) {
        if (event === "error") throw new Error(data.error.message);
        own.take(event, data);
        this.schedule();
      }
      return own.result;
    } catch (error) {
      if (error.name === "AbortError") own.stopped = true;
      else this.problem(error.message);
      if (!own.frames.length && !own.text && this.recording === own) this.clear();
      if (error.name !== "AbortError") throw error;
      return null;
    } finally {
      if (this.running === mine) { this.running = null; this.busy(false); }
      this.schedule();
    }
  }

  clear() { this.view.clear(); this.recording = null; this.parts.step.textContent = "step 0"; this.hooks.drawn?.(null, 0, false); }

  stop() { if (this.running) { this.running.abort(); this.running = null; this.busy(false); } }

  busy(on) {
    const parts = this.parts;
    for (const name of ["play", "scrub", "copy"]) parts[name].disabled = on || !this.recording;
    parts.map.disabled = on || !this.recording;
    this.save.disabled = on || !this.recording;
    this.pause();
    this.hooks.busy?.(on);
  }

  problem(text) { this.parts.problem.hidden = !text; this.parts.problem.textContent = text; }

  map(on) {
    this.parts.map.checked = this.view.mapped = on;
    if (on && this.recording) { this.pause(); this.shown = this.recording.frames.length; }
    if (this.recording?.frames.length && !this.running) this.draw(on ? this.recording.frames.length : Number(this.parts.scrub.value), false);
  }

  // Drawing: a fast model is slowed to what eyes can follow.
  schedule() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(now => this.advance(now));
  }

  advance(now) {
    this.waiting = false;
    const recording = this.recording;
    if (!recording || this.playing) return;
    const arrived = recording.frames.length;
    const pace = Math.max(1, (arrived - this.shown) / BEHIND) / STEP_MS;
    this.shown = Math.min(arrived, this.shown + Math.min(100, now - this.last) * pace);
    this.last = now;
    if (arrived - this.shown < 1 && !this.running) this.shown = arrived;
    const at = Math.floor(this.shown), live = Boolean(this.running) || this.shown < arrived;
    const look = `${at} ${arrived} ${live} ${Boolean(recording.result)} ${recording.stopped} ${recording.started}`;
    if (look !== this.looks) this.draw(at, live);
    this.looks = look;
    if (this.shown < arrived) this.schedule();
  }

  draw(at, live) {
    const recording = this.recording;
    if (!recording) return;
    this.view.draw(at, live);
    // what changes many times a second is not read out; the finished text is
    this.parts.canvas.setAttribute("aria-hidden", String(live || at < recording.frames.length));
    this.parts.scrub.max = recording.frames.length;
    this.parts.scrub.value = at;
    this.parts.step.textContent = `step ${at} of ${recording.frames.length}`;
    this.hooks.drawn?.(recording, at, live);
  }

  pause() { clearInterval(this.playing); this.playing = 0; this.parts.play.textContent = "▶"; this.parts.play.setAttribute("aria-label", "Replay"); }

  replay() {
    if (this.playing) { this.pause(); return; }
    if (!this.recording) return;
    const count = this.recording.frames.length;
    this.shown = count;
    let at = Number(this.parts.scrub.value) >= count ? 0 : Number(this.parts.scrub.value);
    this.parts.play.textContent = "❚❚";
    this.parts.play.setAttribute("aria-label", "Pause");
    this.playing = setInterval(() => {
      at += 1;
      this.draw(at, true);
      if (at >= count) this.pause();
    }, Math.max(40, Math.min(220, 9000 / count)));
  }
}

export async function copy(button, text) {
  const label = button.textContent;
  try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; } catch { button.textContent = "Not allowed"; }
  setTimeout(() => { button.textContent = label; }, 1500);
}

export const ENDS = { eos: "end of text", length: "length", stop: "stop string", cancelled: "you" };

// Tokens per second of a result, as text.
export function speed(metrics) {
  const rate = metrics.tokens / Math.max(metrics.seconds, 1e-3);
  return rate.toFixed(rate > 100 ? 0 : 1);
}
