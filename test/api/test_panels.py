# The pictures of a run over HTTP: listed newest first, sent as PNG, and nothing else of the disk.
# Entry points: pytest.
# A run is made by hand in the folder the server uses; links and names that climb are refused.
"""Tests of api/job_panels.py."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx

PNG = b"\x89PNG\r\n\x1a\n picture"


def test_pictures_are_listed_and_sent_and_nothing_else(served: httpx.Client, served_folder: Path) -> None:
    runs = served_folder / "runs"
    run = runs / "convert-wsd-20260101-000000-aaaaaa"
    for name in ("panels/decoding-000002.png", "panels/decoding-000004.png", "plots/loss.png"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(PNG + name.encode())
    os.utime(run / "panels" / "decoding-000002.png", (1, 1))
    (run / "status.json").write_text(json.dumps({"state": "done", "command": "convert-wsd"}))
    (run / "panels" / "secret.png").symlink_to(run / "status.json")
    found = served.get(f"/jobs/{run.name}/panels").json()["panels"]
    assert sorted(found) == ["panels/decoding-000002.png", "panels/decoding-000004.png", "plots/loss.png"]
    assert found[-1] == "panels/decoding-000002.png"
    sent = served.get(f"/jobs/{run.name}/panels/{found[0]}")
    assert sent.headers["content-type"] == "image/png" and sent.content == PNG + found[0].encode()
    for wrong in ("panels/secret.png", "panels/none.png", "..%2f/status.json", "panels/..%2f..%2fstatus.json"):
        assert served.get(f"/jobs/{run.name}/panels/{wrong}").status_code == 404
    assert served.get("/jobs/nothing/panels").status_code == 404
