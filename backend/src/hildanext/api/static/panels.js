// The pictures a run has drawn, in a fold of its card: the newest of each kind, asked for while the fold is open.
import { get, image } from "./api.js";

export function pictures() {
  const root = document.createElement("details"), box = document.createElement("div");
  const summary = document.createElement("summary");
  summary.textContent = "Panels";
  root.className = "panels";
  root.hidden = true;
  root.append(summary, box);
  const shown = new Map();

  async function show(id) {
    const { panels } = await get(`/jobs/${id}/panels`);
    const newest = new Map();
    for (const file of [...panels].sort().reverse()) {
      const kind = file.replace(/(-\d+)?\.png$/, "");
      if (!newest.has(kind)) newest.set(kind, file);
    }
    root.hidden = newest.size === 0;
    if (!root.open) return;
    for (const [kind, file] of newest) {
      if (shown.get(kind)?.file === file) continue;
      const picture = shown.get(kind)?.picture || document.createElement("img");
      picture.src = await image(`/jobs/${id}/panels/${file}`);
      picture.alt = file;
      picture.title = file;
      if (!picture.isConnected) box.append(picture);
      shown.set(kind, { file, picture });
    }
  }

  return { root, show };
}
