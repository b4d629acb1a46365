# Hostile inputs over raw sockets and HTTP: each gets a clear 4xx, and the server answers the next request as ever.
# Entry points: pytest.
# The list is data: what is sent, the statuses that are right, and a word the answer must hold.
"""Hostile inputs."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from api.live import config_in, live_server, wait_ready
from api.scripted import ScriptedSession
from waiting import PATIENCE

BIG = "x" * (2 << 20)
POST = b"POST /generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
JSON = {"content-type": "application/json"}
GENERATE: list[tuple[str, bytes, tuple[int, ...]]] = [
    ("empty body", b"", (422,)),
    ("no object", b"[]", (422,)),
    ("null", b"null", (422,)),
    ("broken JSON", b'{"prompt": "a"', (422,)),
    ("invalid UTF-8", b'{"prompt": "\xff\xfe"}', (400, 422)),
    ("UTF-16", '{"prompt": "a", "max_new_tokens": 0}'.encode("utf-16"), (400, 422)),
    ("lone surrogate", b'{"prompt": "\\ud800"}', (400, 422)),
    ("lone surrogate as key", b'{"prompt": "a", "\\ud800": 1}', (422,)),
    ("deep lists", b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", (400, 422)),
    ("deep objects", b'{"a":' * 50_000 + b"1" + b"}" * 50_000, (400, 422)),
    ("deep but parsable", b'{"prompt": ' + b"[" * 500 + b"]" * 500 + b"}", (422,)),
    ("NaN threshold", b'{"prompt": "a", "tau_mask": NaN}', (422,)),
    ("infinite threshold", b'{"prompt": "a", "tau_edit": Infinity}', (422,)),
    ("overflowing threshold", b'{"prompt": "a", "tau_mask": 1e999}', (422,)),
    ("negative threshold", b'{"prompt": "a", "tau_mask": -0.1}', (422,)),
    ("threshold as text", b'{"prompt": "a", "tau_mask": "0.5"}', (422,)),
    ("NaN in an override", b'{"prompt": "a", "overrides": {"tau_mask": NaN}}', (422,)),
    ("nested override", b'{"prompt": "a", "overrides": {"x": {"y": 1}}}', (422,)),
    ("many overrides", json.dumps({"prompt": "a", "overrides": {str(i): 1 for i in range(100)}}).encode(), (422,)),
    ("zero tokens", b'{"prompt": "a", "max_new_tokens": 0}', (422,)),
    ("too many tokens", b'{"prompt": "a", "max_new_tokens": 1000000}', (400,)),
    ("huge integer", b'{"prompt": "a", "max_new_tokens": ' + b"9" * 4000 + b"}", (422,)),
    ("gigantic integer", b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}", (400, 422)),
    ("float tokens", b'{"prompt": "a", "max_new_tokens": 3.5}', (422,)),
    ("boolean tokens", b'{"prompt": "a", "max_new_tokens": true}', (422,)),
    ("number as flag", b'{"prompt": "a", "stream": 0}', (422,)),
    ("negative seed", b'{"prompt": "a", "seed": -2}', (422,)),
    ("unknown key", b'{"prompt": "a", "frobnicate": 1}', (422,)),
    ("prototype key", b'{"prompt": "a", "__class__": {"x": 1}}', (422,)),
    ("unknown mode", b'{"prompt": "a", "mode": "FAST"}', (422,)),
    ("two prompts", b'{"prompt": "a", "prompt_ids": [1]}', (422,)),
    ("no prompt", b"{}", (422,)),
    ("negative ids", b'{"prompt_ids": [-1]}', (422,)),
    ("no ids", b'{"prompt_ids": []}', (422,)),
    ("empty stop", b'{"prompt": "a", "stop": [""]}', (422,)),
    ("many stops", json.dumps({"prompt": "a", "stop": ["s"] * 100}).encode(), (422,)),
    ("unknown role", b'{"messages": [{"role": "root", "content": "a"}]}', (422,)),
    ("giant body", json.dumps({"prompt": BIG}).encode(), (413,)),
    ("long prompt", json.dumps({"prompt": "x" * 200_000}).encode(), (413,)),
]  # fmt: skip
PATHS = [
    "/static/../app.py", "/static/..%2f..%2fapp.py", "/static/%2e%2e/%2e%2e/errors.py", "/static//etc/passwd",
    "/jobs/..", "/jobs/..%2f..%2fetc", "/jobs/%2e%2e/logs", "/jobs/a%00b", "/jobs/.hidden", "/jobs/" + "x" * 5000,
    "/jobs/configs", "/v1/models/../../health/x", "/jobs/x/metrics?tail=-1", "/jobs/x/logs?tail=99999999",
]  # fmt: skip
JOBS: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("unknown command", {"command": "rm"}, (422,)),
    ("serve as a job", {"command": "serve"}, (422,)),
    ("config above", {"command": "sft", "config": "../secret.json"}, (403,)),
    ("absolute config", {"command": "sft", "config": "/etc/passwd"}, (403,)),
    ("config with a null", {"command": "sft", "config": "runs/a\0b.json"}, (403,)),
    ("missing config", {"command": "sft", "config": "RUNS/none.json"}, (404,)),
    ("linked config", {"command": "sft", "config": "RUNS/link.json"}, (403,)),
    ("model outside", {"command": "sft", "set": ["model.path=/etc"]}, (403,)),
    ("model above", {"command": "sft", "set": ["model.path=../../other"]}, (403,)),
    ("model at home", {"command": "sft", "set": ["model.path=~/model"]}, (403,)),
    ("model through a link", {"command": "sft", "set": ["model.path=MODELS/link"]}, (403,)),
    ("other folders", {"command": "sft", "set": ["paths.runs=/tmp"]}, (403,)),
    ("code of a model folder", {"command": "sft", "set": ["model.trust_remote_code=true"]}, (403,)),
    ("environment", {"command": "sft", "set": ["description=${HILDANEXT_API_KEY}"]}, (400,)),
    ("no override", {"command": "sft", "set": ["justtext"]}, (400,)),
    ("a flag as override", {"command": "sft", "set": ["--run-dir=/tmp/x"]}, (400,)),
    ("a job that generates", {"command": "generate"}, (422,)),
    ("export to the outside", {"command": "export", "set": ["export.output=/tmp/x"]}, (403,)),
    ("export to what reads like a hub name", {"command": "export", "set": ["export.output=some/where"]}, (403,)),
    ("export over the models", {"command": "export", "set": ["export.output=MODELS"]}, (403,)),
    ("export over the runs", {"command": "export", "set": ["export.output=RUNS/."]}, (403,)),
    ("export over all folders", {"command": "export", "set": ["export.output=MODELS/.."]}, (403,)),
    ("export into a run", {"command": "export", "set": ["export.output=RUNS/sft-1/model"]}, (403,)),
    ("export to the working directory", {"command": "export", "set": ["export.output=evil"]}, (403,)),
    ("export to what a home may hold", {"command": "export", "set": ["export.output=~/MODELS"]}, (403,)),
    ("merge over the models", {"command": "merge-checkpoints", "set": ["merge.output=MODELS"]}, (403,)),
    ("merge into another run", {"command": "merge-checkpoints",
                                "set": ["merge.run=RUNS/a", "merge.output=RUNS/b/merged"]}, (403,)),
    ("merge over a run's model", {"command": "merge-checkpoints",
                                  "set": ["merge.run=RUNS/a", "merge.output=RUNS/a/model"]}, (403,)),
    ("merge of all runs", {"command": "merge-checkpoints", "set": ["merge.run=RUNS"]}, (403,)),
    ("members above the run", {"command": "merge-checkpoints",
                               "set": ["merge.run=RUNS/a", 'merge.members=["MODELS/../../x"]']}, (403,)),
    ("shards above", {"command": "tokenize", "set": ["tokenize.name=../.."]}, (400,)),
    ("shards below", {"command": "tokenize", "set": ["tokenize.name=a/b"]}, (400,)),
    ("a set above", {"command": "prepare-data", "set": ["data.name=../.."]}, (400,)),
    ("a split above", {"command": "sft", "set": ["train.split=../../x"]}, (400,)),
    ("a model by a hub name", {"command": "sft", "set": ["model.path=notes/evil"]}, (403,)),
    ("a tokenizer by a hub name", {"command": "tokenize", "set": ["tokenize.tokenizer=notes/evil"]}, (403,)),
    ("items above by a hub name", {"command": "eval",
                                   "set": ['eval.tasks=[{"type": "gsm8k", "path": "hub:../x:test"}]']}, (403,)),
    ("a set at home", {"command": "prepare-data",
                       "set": ['data.sources=[{"type": "huggingface", "dataset": "~"}]']}, (403,)),
    ("merge of a run outside", {"command": "merge-checkpoints", "set": ["merge.run=/etc"]}, (403,)),
    ("members outside", {"command": "merge-checkpoints", "set": ['merge.members=["a", "../../b"]']}, (403,)),
    ("merge to the outside", {"command": "merge-checkpoints", "set": ["merge.output=~/x"]}, (403,)),
    ("eval against the outside", {"command": "eval", "set": ['eval.against=["/etc/passwd"]']}, (403,)),
    ("inspect against a link", {"command": "inspect", "set": ["inspect.against=MODELS/link"]}, (403,)),
    ("bench of a path", {"command": "bench", "set": ["bench.part=../decode"]}, (403,)),
    ("many overrides", {"command": "sft", "set": ["seed=1"] * 100}, (422,)),
]  # fmt: skip


def alive(client: httpx.Client) -> bool:
    reply = client.post("/generate", json={"prompt": "after", "max_new_tokens": 3})
    return reply.status_code == 200 and client.get("/health").json()["status"] == "ready"


@pytest.mark.parametrize(("name", "body", "statuses"), GENERATE, ids=[case[0] for case in GENERATE])
def test_a_hostile_generation_is_a_clear_4xx(
    served: httpx.Client, name: str, body: bytes, statuses: tuple[int, ...]
) -> None:
    reply = served.post("/generate", content=body, headers=JSON)
    assert reply.status_code in statuses, reply.text[:300]
    assert reply.json()["error"]["message"] and len(reply.text) < 2000
    assert alive(served)


@pytest.mark.parametrize("path", PATHS)
def test_no_path_leads_out(served: httpx.Client, path: str) -> None:
    with socket.create_connection(_place(served), PATIENCE) as wire:
        wire.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        answer = _all(wire)
    assert answer.split(b" ")[1] in (b"404", b"422", b"400"), answer[:200]
    assert b"root:" not in answer and b"hildanext.errors" not in answer


@pytest.mark.parametrize(("name", "body", "statuses"), JOBS, ids=[case[0] for case in JOBS])
def test_a_hostile_job_is_a_clear_4xx_and_no_run(
    served: httpx.Client, name: str, body: dict[str, Any], statuses: tuple[int, ...], folders: dict[str, Path]
) -> None:
    text = json.dumps(body).replace("RUNS", str(folders["runs"])).replace("MODELS", str(folders["models"]))
    reply = served.post("/jobs", content=text, headers=JSON)
    assert reply.status_code in statuses, reply.text[:300]
    assert reply.json()["error"]["message"] and served.get("/jobs").json()["jobs"] == []


@pytest.fixture(scope="module")
def folders(served: httpx.Client, served_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = served_folder
    outside = tmp_path_factory.mktemp("outside")
    (outside / "config.json").write_text("{}")
    (root / "runs" / "link.json").symlink_to(outside / "config.json")
    (root / "models" / "link").symlink_to(outside)
    return {"runs": root / "runs", "models": root / "models"}


def _place(client: httpx.Client) -> tuple[str, int]:
    parts = urlsplit(str(client.base_url))
    return str(parts.hostname), int(parts.port or 0)


def _all(wire: socket.socket) -> bytes:
    found = b""
    while piece := wire.recv(65536):
        found += piece
    return found


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server that waits half a second for a body."""
    config = config_in(tmp_path_factory.mktemp("hasty"), body_seconds=0.5)
    with live_server(config, ScriptedSession()) as (url, _), httpx.Client(base_url=url) as client:
        wait_ready(url)
        yield client


def test_a_body_that_never_ends_is_a_408(hasty: httpx.Client) -> None:
    with socket.create_connection(_place(hasty), PATIENCE) as wire:
        wire.sendall(POST + b"content-type: application/json\r\ncontent-length: 99\r\n\r\n{")
        assert b" 408 " in wire.recv(200)
    assert alive(hasty)


def test_a_dripping_body_is_a_408(hasty: httpx.Client) -> None:
    with socket.create_connection(_place(hasty), PATIENCE) as wire:
        wire.sendall(POST + b"transfer-encoding: chunked\r\n\r\n")
        wire.settimeout(0.1)
        deadline, answer = time.monotonic() + PATIENCE, b""
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # hung up on: what was said before is still to be read
                wire.sendall(b"1\r\n{\r\n")
            with contextlib.suppress(TimeoutError):
                answer = wire.recv(200)
                break
        assert b" 408 " in answer
    assert alive(hasty)


def test_a_chunked_giant_is_cut_off(served: httpx.Client) -> None:
    with socket.create_connection(_place(served), PATIENCE) as wire:
        wire.sendall(POST + b"transfer-encoding: chunked\r\n\r\n")
        piece = b"x" * 65536
        try:
            for _ in range(40):
                wire.sendall(b"10000\r\n" + piece + b"\r\n")
        except OSError:
            pass
        assert b" 413 " in wire.recv(200)
    assert alive(served)


@pytest.mark.parametrize(
    "raw",
    [
        b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", POST + b"content-length: -5\r\n\r\n",
        POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_not_http_is_a_4xx_or_hung_up_on(served: httpx.Client, raw: bytes) -> None:
    with socket.create_connection(_place(served), PATIENCE) as wire:
        try:
            wire.sendall(raw)
            answer = wire.recv(300)
        except ConnectionError:
            answer = b""
    assert answer == b"" or answer.split(b" ")[1].startswith(b"4"), answer
    assert alive(served)


def test_a_form_of_another_page_is_refused(served: httpx.Client) -> None:
    headers = {"content-type": "text/plain", "origin": "http://evil.example"}
    assert served.post("/generate", content=b'{"prompt": "a"}', headers=headers).status_code == 403
    assert (
        served.post("/generate", content=b'{"prompt": "a"}', headers={"content-type": "text/plain"}).status_code == 422
    )


def test_there_are_at_least_fifty_hostile_inputs() -> None:
    assert len(GENERATE) + len(PATHS) + len(JOBS) >= 50
