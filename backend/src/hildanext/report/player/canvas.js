// The record of one generation (the events of docs/events.md) and its drawing at any step: the page and saved players
// share it. A block is a run of cells until it is committed, then text. whole: given tokens are part of the text.
export class Recording {
  constructor(prompt, length, whole = false) {
    this.prompt = prompt; this.length = length; this.whole = whole; this.events = []; this.written = new Map();
    this.blocks = []; this.frames = []; this.tokens = 0; this.edits = 0; this.result = null; this.glued = false;
    this.started = performance.now();
  }

  // One event as it came; kinds it does not know change nothing.
  take(kind, data) {
    if (["draft", "commit", "done"].includes(kind)) this.events.push({ kind, ...data });
    if (kind === "draft") this.draft(data);
    else if (kind === "commit") this.commit(data);
    else if (kind === "done") this.end(data);
  }

  draft(data) {
    const tokens = data.tokens.filter(token => this.whole || token.state !== "given");
    if (!tokens.length) return;
    // at most one block is opened from one draft to the next: what lies behind all known ones is it
    const known = this.blocks.filter(block => block.last >= tokens[0].pos);
    const last = tokens[tokens.length - 1].pos;
    if (!known.length || known[known.length - 1].last < last) {
      const begins = known.length ? known[known.length - 1].last : -1;
      const size = tokens.filter(token => token.pos > begins).length;
      const block = { last, size, history: [], committed: Infinity, text: "", count: 0 };
      this.blocks.push(block); known.push(block);
    }
    let rest = tokens;
    for (const block of known) {
      const own = rest.filter(token => token.pos <= block.last);
      rest = rest.slice(own.length);
      const before = block.history.length ? block.history[block.history.length - 1].tokens : [];
      const old = new Map(before.map(token => [token.pos, token.text]));
      for (const token of own) if (token.state === "edited") token.old = old.get(token.pos);
      block.history.push({ frame: this.frames.length + 1, tokens: own });
    }
    this.glued ||= tokens.some(token => /^\s|\s$/.test(token.text));
    const masks = tokens.filter(token => token.state === "mask").length;
    const edits = tokens.filter(token => token.state === "edited").length;
    this.edits += edits;
    for (const token of tokens) if (token.state === "new" || token.state === "edited") this.written.set(token.pos, this.frames.length + 1);
    this.frames.push({ block: this.blocks.indexOf(known[0]), masks: masks / tokens.length, edits });
  }

  commit(data) {
    this.tokens += data.token_ids.length;
    const open = this.blocks.find(block => block.committed === Infinity);
    const block = open || this.blocks[this.blocks.length - 1];
    if (!block) { this.blocks.push({ last: -1, size: 0, history: [], committed: this.frames.length, text: data.text, count: data.token_ids.length }); return; }
    block.committed = Math.min(block.committed, this.frames.length);
    block.text += data.text;
    block.count += data.token_ids.length;
    // blocks that became final together come as one text, which stands in the first
    let left = data.token_ids.length - block.size;
    for (const later of this.blocks.slice(this.blocks.indexOf(block) + 1)) {
      left -= later.size;
      if (left >= 0) later.committed = Math.min(later.committed, this.frames.length);
    }
  }

  // The text is whole: what was drafted behind its end is not part of it.
  end(result) {
    this.result = result;
    const last = this.blocks.findLastIndex(block => block.count > 0);
    for (const block of this.blocks.slice(last + 1)) block.committed = Math.min(block.committed, this.frames.length);
  }

  get text() { return this.result ? this.result.text : this.blocks.map(block => block.text).join(""); }

  // Figures of the text as it was at a step, not as it is now.
  at(frame) {
    const tokens = this.blocks.reduce((sum, block) => sum + (block.committed <= frame ? block.count : 0), 0);
    const edits = this.frames.slice(0, frame).reduce((sum, step) => sum + step.edits, 0);
    return { tokens, forwards: frame, edits };
  }
}

// Draws a recording into an element; only blocks whose look has changed are touched.
export class View {
  constructor(element) {
    this.element = element; this.mapped = false;
    element.onscroll = () => element.classList.toggle("scrolled", element.scrollTop > 0);
    this.clear();
  }

  clear() { this.element.replaceChildren(); this.parts = []; this.tail = null; this.recording = null; this.active = -1; }

  show(recording) {
    this.clear();
    this.recording = recording;
    const echo = document.createElement("span");
    echo.className = "prompt-echo";
    echo.textContent = recording.prompt;
    this.tail = document.createElement("span");
    this.element.append(echo, this.tail);
  }

  draw(frame, live) {
    const recording = this.recording;
    if (!recording) return;
    this.element.classList.toggle("live", live);
    let left = recording.length;
    this.unmapped = recording.tokens;
    recording.blocks.forEach((block, index) => {
      left -= block.size;
      const part = this.parts[index] || this.add();
      this.drawBlock(part, block, frame, live);
    });
    const finished = recording.result && frame >= recording.frames.length;
    const later = finished ? 0 : Math.max(0, Math.min(left, 2000));
    this.drawTail(later);
    this.follow(frame);
  }

  // Scrolls to the active block when it changes.
  follow(frame) {
    const active = recordingBlock(this.recording, frame);
    if (active === this.active) return;
    this.active = active;
    const part = this.parts[active];
    if (!part) return;
    this.element.scrollTop = part.element.offsetTop - this.element.offsetTop - this.element.clientHeight * 0.6;
    this.element.classList.toggle("scrolled", this.element.scrollTop > 0);
  }

  add() {
    const part = { element: document.createElement("span"), look: "" };
    this.tail.before(part.element);
    this.parts.push(part);
    return part;
  }

  drawBlock(part, block, frame, live) {
    let at = -1;
    for (let i = block.history.length - 1; i >= 0 && at < 0; i--) if (block.history[i].frame <= frame) at = i;
    const over = this.recording.result && frame >= this.recording.frames.length;
    const committed = at === block.history.length - 1 && (frame > block.committed || (over && block.committed < Infinity));
    const kept = this.unmapped;
    this.unmapped -= block.size;
    const look = committed && this.mapped ? `map ${kept} ${this.recording.frames.length}` : committed ? `text ${block.text.length}` : `step ${at}`;
    if (look === part.look) return;
    part.look = look;
    if (committed && this.mapped && at >= 0) part.element.replaceChildren(...this.map(block.history[at].tokens.slice(0, Math.max(0, kept))));
    else if (committed) part.element.replaceChildren(block.text);
    else if (at < 0) part.element.replaceChildren(...masks(block.size, "later"));
    else part.element.replaceChildren(...block.history[at].tokens.flatMap(token => cell(token, this.recording.glued)));
  }

  // Finished tokens, each in the shade of the step that wrote it last: early ones pale, late ones full.
  map(tokens) {
    const { written, frames, glued } = this.recording;
    return tokens.flatMap(token => {
      const nodes = cell({ ...token, state: "mapped", old: undefined, step: written.get(token.pos) }, glued);
      nodes[nodes.length - 1].style.setProperty("--share", ((written.get(token.pos) || 0) / frames.length).toFixed(3));
      return nodes;
    });
  }

  drawTail(count) {
    const have = this.tail.childElementCount;
    if (count > have) this.tail.append(...masks(count - have, "later"));
    for (let i = have; i > count; i--) this.tail.lastChild.remove();
  }
}

function recordingBlock(recording, frame) {
  return frame > 0 ? recording.frames[Math.min(frame, recording.frames.length) - 1].block : 0;
}

function masks(count, kind) {
  return Array.from({ length: count }, () => {
    const span = document.createElement("span");
    span.className = `cell ${kind}`;
    return span;
  });
}

// The nodes of one token. glued: the tokens carry their own spaces, which stay outside the coloured cell; otherwise
// words are set apart, punctuation is not.
function cell(token, glued) {
  const span = document.createElement("span");
  span.className = `cell ${token.state}`;
  if (token.state === "mask") return [span];
  if (token.state === "new") span.style.setProperty("--sure", (token.confidence ?? 1).toFixed(2));
  if (token.old !== undefined && token.old.trim() !== token.text.trim()) {
    const old = document.createElement("s");
    old.textContent = token.old.trim();
    span.append(old);
  }
  const gap = /^ +(?=\S)/.exec(token.text)?.[0] || "";
  const text = token.text.slice(gap.length).replace(/\n/g, "↵\n");
  if (!text) { span.classList.add("end"); span.textContent = " ∎"; } else span.append(text);
  if (!glued && /^\w/.test(text)) span.classList.add("apart");
  span.title = `${token.step ? `written at step ${token.step}` : token.state}, position ${token.pos}${token.confidence ? `, confidence ${token.confidence.toFixed(3)}` : ""}`;
  return gap ? [gap, span] : [span];
}
