// The chart of masks per step, with edits.
const SVG = "http://www.w3.org/2000/svg";

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// frames: [{masks: share in [0, 1], edits: count}]; at: the step shown. The curve is built again only when it has grown.
export function drawMasks(svg, frames, at) {
  const width = 1000, height = 100, base = 84;
  if (svg.frames !== frames || svg.steps !== frames.length) buildMasks(svg, frames, width, height, base);
  if (!svg.cursor) return;
  const x = Math.min(frames.length, at) * width / frames.length;
  svg.cursor.setAttribute("x1", x);
  svg.cursor.setAttribute("x2", x);
}

function buildMasks(svg, frames, width, height, base) {
  svg.frames = frames;
  svg.steps = frames.length;
  svg.cursor = frames.length ? shape("line", { class: "cursor", x1: 0, x2: 0, y1: 0, y2: height }) : null;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const step = width / Math.max(1, frames.length);
  const most = Math.max(1, ...frames.map(frame => frame.edits));
  const parts = [0, 0.5, 1].map(share => shape("line", { class: "grid", x1: 0, x2: width, y1: base - share * (base - 4), y2: base - share * (base - 4) }));
  for (const [begin, end] of runs(frames)) {
    const line = [`${(begin * step).toFixed(1)},4`];
    for (let i = begin; i < end; i++) line.push(`${((i + 1) * step).toFixed(1)},${(base - frames[i].masks * (base - 4)).toFixed(1)}`);
    parts.push(shape("path", { class: "area", d: `M${begin * step},${base} L${line.join(" L")} L${end * step},${base} Z` }));
    parts.push(shape("polyline", { class: "line", points: line.join(" ") }));
  }
  if (frames.length) {
    frames.forEach((frame, i) => {
      const tall = 14 * frame.edits / most;
      if (tall) parts.push(shape("rect", { class: "bar", x: i * step + step * 0.15, width: step * 0.7, y: height - tall, height: tall }));
    });
    parts.push(svg.cursor);
  }
  svg.replaceChildren(...parts);
}

// [begin, end) of the frames of each block.
function runs(frames) {
  const found = [];
  frames.forEach((frame, i) => {
    if (i && frames[i - 1].block === frame.block) found[found.length - 1][1] = i + 1; else found.push([i, i + 1]);
  });
  return found;
}
