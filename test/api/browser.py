# Chromium through chromedriver's own HTTP protocol, with the standard library only.
# Entry points: browser(), Browser (go, run, wait, watch, most, shot, click, type).
# Tests that use it are skipped where chromedriver is missing.
"""A headless browser for the tests of the page."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waiting import PATIENCE, free_ports, until

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


@dataclass
class Browser:
    """One WebDriver session."""

    address: str

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """One WebDriver command."""
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self.address + path, data, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            return json.loads(reply.read())["value"]

    def go(self, url: str) -> None:
        """Open a page."""
        self.call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value a script returns."""
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, condition: str) -> Any:
        """The first true value of a JavaScript expression; one that stays true, as no page waits to be seen."""
        return until(lambda: self.run(f"return {condition}"))

    def watch(self, *selectors: str) -> None:
        """From now on count what each selector finds, whenever the canvas changes."""
        self.run(
            "window.most = {}; window.watch?.disconnect(); const names = arguments[0];"
            " window.watch = new MutationObserver(() => { for (const name of names) window.most[name] ="
            " Math.max(window.most[name] || 0, document.querySelectorAll(name).length); });"
            " window.watch.observe(document.getElementById('canvas'),"
            " {subtree: true, childList: true, attributes: true})",
            selectors,
        )

    def most(self, selector: str) -> int:
        """The most that was seen at once of a watched selector."""
        return int(self.run("return window.most[arguments[0]] || 0", selector))

    def click(self, selector: str) -> None:
        """Click an element."""
        found = self.call("POST", "/element", {"using": "css selector", "value": selector})
        self.call("POST", f"/element/{found[ELEMENT]}/click")

    def type(self, selector: str, text: str) -> None:
        """Replace the text of a field, key by key."""
        found = self.call("POST", "/element", {"using": "css selector", "value": selector})
        self.call("POST", f"/element/{found[ELEMENT]}/clear")
        self.call("POST", f"/element/{found[ELEMENT]}/value", {"text": text})

    def shot(self, path: Path) -> None:
        """Write a screenshot."""
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))

    def console(self) -> list[str]:
        """What the page wrote to its console."""
        return [str(entry["message"]) for entry in self.call("POST", "/se/log", {"type": "browser"})]


@contextlib.contextmanager
def browser(width: int = 1360, height: int = 900) -> Iterator[Browser]:
    """A headless Chromium that lives for the block."""
    port = free_ports(1)
    driver = subprocess.Popen([shutil.which("chromedriver") or "", f"--port={port}"], stdout=subprocess.DEVNULL)
    root = Browser(f"http://127.0.0.1:{port}")
    try:
        until(lambda: _up(root))
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--window-size={width},{height}",
        ]
        wanted = {"goog:chromeOptions": {"args": flags}, "goog:loggingPrefs": {"browser": "ALL"}}
        number = root.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        page = Browser(f"{root.address}/session/{number}")
        try:
            yield page
        finally:
            page.call("DELETE", "")
    finally:
        driver.terminate()
        driver.wait(PATIENCE)


def _up(root: Browser) -> bool:
    with contextlib.suppress(OSError):
        root.call("GET", "/status")
        return True
    return False
