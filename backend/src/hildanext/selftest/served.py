# A server of this package as a child process, for tests that must see it answer over HTTP.
# Entry points: Served (context manager: ready, get, post).
# Port 0: the child says on stderr which address it got. Standard library only.
"""A server to talk to."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

from hildanext.errors import RunError

ADDRESS = re.compile(r"serving on (http://\S+)")
START_SECONDS = 600.0
STOP_SECONDS = 15.0


class Served:
    """`hildanext serve` over a model folder while the block lasts; its output goes to `log`."""

    def __init__(self, model: str, log: Path) -> None:
        self.model, self.log = model, log
        self.address = ""

    def __enter__(self) -> Served:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "hildanext", "serve", "--port", "0", "--model", self.model]
        with self.log.open("wb") as file:
            self._child = subprocess.Popen([*command, "--set", "serve.jobs=false"], stdout=file, stderr=file)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._child.terminate()
        try:
            self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def ready(self) -> dict[str, Any]:
        """/health once it answers. RunError when the server ends or stays silent for START_SECONDS."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            found = ADDRESS.search(self.log.read_text(encoding="utf-8", errors="replace"))
            if self._child.poll() is not None:
                break
            if found:
                self.address = found.group(1)
                health = self._health()
                if health:
                    return health
            time.sleep(0.2)
        tail = self.log.read_text(encoding="utf-8", errors="replace")[-400:]
        raise RunError(f"the server did not become ready in {START_SECONDS:.0f} s; it said: {tail}")

    def _health(self) -> dict[str, Any]:
        try:
            return self.get("/health")
        except urllib.error.URLError:
            return {}

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path."""
        return self._send(urllib.request.Request(self.address + path))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON reply to a JSON body."""
        headers = {"content-type": "application/json"}
        return self._send(urllib.request.Request(self.address + path, json.dumps(body).encode(), headers))

    def _send(self, request: urllib.request.Request) -> dict[str, Any]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=START_SECONDS) as reply:
            found: dict[str, Any] = json.load(reply)
        return found
