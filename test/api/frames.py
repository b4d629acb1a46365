# Frame times of the page while it draws a long generation: what a reader would see as stutter.
# Entry points: measure(url, tokens); python -m api.frames URL [TOKENS], for a quiet machine and a running server.
# Deltas between animation frames, the page's own work per frame, and tasks of 50 ms and more, all in milliseconds.
"""Frame times of the page."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from api.browser import Browser, browser
from api.soak import distribution, percentiles

WATCH = """
const real = window.requestAnimationFrame.bind(window), seen = window.seen = { frames: [], work: [], long: [] };
let last = performance.now(), begun = last;
window.requestAnimationFrame = f => real(t => {
  const before = performance.now(); f(t); seen.work.push(performance.now() - before);
});
(function tick() { const now = performance.now(); seen.frames.push(now - last); last = now; real(tick); })();
new PerformanceObserver(list => list.getEntries().forEach(entry => {
  if (entry.startTime > begun) seen.long.push(Math.round(entry.duration));
})).observe({ entryTypes: ["longtask"] });
"""
ENDED = (
    "document.getElementById('n-end').textContent !== '–' && !document.querySelector('#canvas .cell')"
    " && !document.getElementById('go').disabled"
)


def measure(page: Browser, url: str, tokens: int) -> dict[str, Any]:
    """Generate `tokens` tokens in the page; figures of its frames until the last one is drawn."""
    page.go(url)
    page.wait("document.querySelectorAll('input[name=mode]').length")
    page.run(f"document.getElementById('length').value = {tokens}")
    page.run(WATCH)
    page.click("#go")
    deadline = time.monotonic() + 120
    while not page.run(f"return {ENDED}"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{tokens} tokens were not drawn after 120 s")
        time.sleep(0.5)
    seen = page.run("return window.seen")
    steps = page.run("return [document.getElementById('n-tokens').textContent, document.getElementById('scrub').max]")
    frames = [value / 1000 for value in seen["frames"][2:]]
    return {
        "tokens": int(steps[0]), "steps": int(steps[1]), "frames": len(frames), "frame_ms": percentiles(frames),
        "frame_distribution": distribution(frames), "work_ms": percentiles([value / 1000 for value in seen["work"]]),
        "long_tasks_ms": seen["long"],
    }  # fmt: skip


if __name__ == "__main__":
    with browser(1280, 900) as found:
        print(json.dumps(measure(found, sys.argv[1], int(sys.argv[2]) if sys.argv[2:] else 500), indent=1))
