// Conversations, kept in this browser only: newest first, {id, title, system, turns: [{role, content, figures}]}.
const KEY = "hildanext-conversations", MOST = 50;

export function load() {
  let found;
  try { found = JSON.parse(localStorage.getItem(KEY)); } catch { return []; }
  if (!Array.isArray(found)) return [];
  const turn = one => ["user", "assistant"].includes(one?.role) && typeof one.content === "string";
  return found.filter(one => typeof one?.id === "string" && Array.isArray(one.turns) && one.turns.every(turn));
}

// False where the browser does not keep them. The oldest go first where there is no room.
export function keep(conversations) {
  let kept = conversations.filter(one => one.turns.length).slice(0, MOST);
  for (; kept.length; kept = kept.slice(0, -1)) {
    try { localStorage.setItem(KEY, JSON.stringify(kept)); return kept.length === Math.min(MOST, conversations.filter(one => one.turns.length).length); } catch { /* no room: without the oldest */ }
  }
  try { localStorage.removeItem(KEY); } catch { return false; }
  return !conversations.some(one => one.turns.length);
}

export function fresh() { return { id: crypto.randomUUID?.() || String(Math.random()), title: "", system: "", turns: [] }; }
