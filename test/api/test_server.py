# The native routes over a live server: generation, streams, health, metrics, limits, keys.
# Entry points: pytest.
# The scripted session makes every answer computable in the test.
"""Native routes."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from api.live import config_in, live_server, wait_ready
from api.scripted import Held, ScriptedSession, story
from prometheus_client.parser import text_string_to_metric_families
from waiting import PATIENCE, until

from hildanext.api import worker
from hildanext.api.app import api_key
from hildanext.config import Config
from hildanext.config.decode import MODES
from hildanext.decoding.request import Request
from hildanext.errors import ConfigError, EngineError


def text_of(prompt: str, new: int, **values: Any) -> str:
    return "".join(story(Request.of(prompt=prompt, max_new_tokens=new, **values)))


def events_of(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    name = "message"
    for line in lines:
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


def test_health_tells_engine_model_queue_and_uptime(served: httpx.Client) -> None:
    health = served.get("/health").json()
    assert (health["status"], health["engine"], health["fallback"]) == ("ready", "scripted", False)
    assert health["model"]["device"] == "cpu" and health["queue"] == {"requests": 0, "limit": 48}
    assert health["uptime_seconds"] > 0


def test_generate_answers_with_text_metrics_and_engine(served: httpx.Client) -> None:
    reply = served.post("/generate", json={"prompt": "hi", "max_new_tokens": 12}).json()
    assert reply["text"] == text_of("hi", 12)
    assert reply["engine"] == "scripted" and reply["metrics"]["tokens"] == 12 and reply["finish_reason"] == "length"


def test_a_stream_commits_the_text_of_the_plain_reply(served: httpx.Client) -> None:
    body = {"prompt": "hi", "max_new_tokens": 20, "stream": True}
    with served.stream("POST", "/generate", json=body) as reply:
        found = list(events_of(reply.iter_lines()))
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert "".join(value["text"] for name, value in found if name == "commit") == text_of("hi", 20)
    assert found[-1][0] == "done" and found[-1][1]["text"] == text_of("hi", 20)
    assert {token["state"] for name, value in found if name == "draft" for token in value["tokens"]} >= {"mask", "new"}


def test_the_fields_of_the_mission_reach_the_engine(served: httpx.Client) -> None:
    body = {"prompt": "a", "mode": "S_MODE", "tau_mask": 0.4, "tau_edit": 0.2, "max_new_tokens": 9, "seed": 3}
    body["temperature"] = 1.0
    expected = text_of("a", 9, mode="S_MODE", tau_mask=0.4, seed=3, temperature=1.0)
    assert served.post("/generate", json=body).json()["text"] == expected


def test_stop_strings_end_the_text(served: httpx.Client) -> None:
    word = story(Request.of(prompt="x", max_new_tokens=30))[10]
    reply = served.post("/generate", json={"prompt": "x", "max_new_tokens": 30, "stop": [word]}).json()
    assert word not in reply["text"] and reply["finish_reason"] == "stop"


def test_a_refusal_of_the_engine_is_a_400_plain_and_streamed(served: httpx.Client) -> None:
    for stream in (False, True):
        reply = served.post("/generate", json={"prompt": "refuse", "stream": stream})
        assert reply.status_code == 400 and "refused" in reply.json()["error"]["message"]


def test_the_modes_are_the_table(served: httpx.Client) -> None:
    assert served.get("/modes").json()["modes"] == {name: dict(values) for name, values in MODES.items()}


LONG = {"prompt": "long", "max_new_tokens": 4000}


def test_a_client_that_goes_away_cancels_its_request(endless: tuple[str, ScriptedSession]) -> None:
    url, session = endless
    with httpx.stream("POST", f"{url}/generate", json={**LONG, "stream": True}) as reply:
        next(reply.iter_lines())
    until(lambda: session.cancelled and session.pending == 0)


def test_a_client_that_hangs_up_on_a_plain_request_cancels_it(endless: tuple[str, ScriptedSession]) -> None:
    (url, session), body = endless, json.dumps(LONG)
    head = f"content-type: application/json\r\ncontent-length: {len(body)}"
    with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), PATIENCE) as wire:
        wire.sendall(f"POST /generate HTTP/1.1\r\nhost: localhost\r\n{head}\r\n\r\n{body}".encode())
        until(lambda: session.pending == 1)
    until(lambda: session.cancelled and session.pending == 0)


def test_a_request_out_of_time_is_a_504(tmp_path: Path) -> None:
    with live_server(config_in(tmp_path, request_seconds=0.5), ScriptedSession(seconds=0.05)) as (url, _):
        wait_ready(url)
        reply = httpx.post(f"{url}/generate", json=LONG)
        assert reply.status_code == 504 and "0.5 seconds" in reply.json()["error"]["message"]


def test_a_full_queue_is_a_429_with_retry_after(tmp_path: Path) -> None:
    go = threading.Event()
    with live_server(config_in(tmp_path, queue=2), Held(go)) as (url, app), ThreadPoolExecutor(2) as pool:
        wait_ready(url)
        work = [pool.submit(httpx.post, f"{url}/generate", json={"prompt": "q", "max_new_tokens": 8}) for _ in "ab"]
        until(lambda: app.state.server.worker.queued == 2)
        reply = httpx.post(f"{url}/generate", json={"prompt": "third"})
        go.set()
        assert reply.status_code == 429 and int(reply.headers["retry-after"]) >= 1
        assert [item.result().status_code for item in work] == [200, 200]


def test_a_request_that_fails_alone_takes_no_other_with_it(tmp_path: Path) -> None:
    with live_server(config_in(tmp_path), ScriptedSession(seconds=0.02)) as (url, app), ThreadPoolExecutor(4) as pool:
        wait_ready(url)
        bodies = [{"prompt": text, "max_new_tokens": 64} for text in ("one", "lost", "two")]
        replies = list(pool.map(lambda body: httpx.post(f"{url}/generate", json=body), bodies))
        assert [reply.status_code for reply in replies] == [200, 500, 200]
        assert "planted loss" in replies[1].json()["error"]["message"]
        with httpx.stream("POST", f"{url}/generate", json=bodies[1] | {"stream": True}) as reply:
            assert "event: error" in reply.read().decode()
        health = httpx.get(f"{url}/health").json()
        assert health["status"] == "degraded" and "planted loss" in health["problem"]
        assert app.state.server.worker.queued == 0


def test_a_degraded_server_is_ready_again_without_another_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "DEGRADED_SECONDS", 3600.0)
    with live_server(config_in(tmp_path), ScriptedSession()) as (url, _):
        wait_ready(url)
        assert httpx.post(f"{url}/generate", json={"prompt": "lost"}).status_code == 500
        assert httpx.get(f"{url}/health").json()["status"] == "degraded"
        monkeypatch.setattr(worker, "DEGRADED_SECONDS", 0.0)
        wait_ready(url)
        assert httpx.get(f"{url}/health").json()["problem"] == ""


def test_a_failing_step_is_a_500_and_the_server_goes_on_degraded(tmp_path: Path) -> None:
    with live_server(config_in(tmp_path), ScriptedSession()) as (url, _):
        wait_ready(url)
        assert httpx.post(f"{url}/generate", json={"prompt": "fail"}).status_code == 500
        health = httpx.get(f"{url}/health")
        assert health.status_code == 200 and health.json()["status"] == "degraded"
        assert "planted failure" in health.json()["problem"]
        assert httpx.post(f"{url}/generate", json={"prompt": "hi", "max_new_tokens": 4}).status_code == 200


def test_while_loading_health_answers_503_and_so_does_generate(tmp_path: Path) -> None:
    gate = threading.Event()

    class Slow:
        def __call__(self) -> Any:
            gate.wait(PATIENCE)
            return ScriptedSession(), ("dinfer: no GPU",)

    with live_server(config_in(tmp_path), opener=Slow()) as (url, _):
        health = httpx.get(f"{url}/health")
        assert health.status_code == 503 and health.json()["status"] == "loading"
        assert httpx.post(f"{url}/generate", json={"prompt": "hi"}).status_code == 503
        gate.set()
        assert wait_ready(url)["reasons"] == ["dinfer: no GPU"]
        reply = httpx.post(f"{url}/generate", json={"prompt": "hi", "max_new_tokens": 2}).json()
        assert reply["reasons"] == ["dinfer: no GPU"] and httpx.get(f"{url}/health").json()["fallback"]


def test_an_engine_that_cannot_open_makes_health_failed(tmp_path: Path) -> None:
    class Broken:
        def __call__(self) -> Any:
            raise EngineError("serve.engines: no engine opened")

    with live_server(config_in(tmp_path), opener=Broken()) as (url, _):
        until(lambda: httpx.get(f"{url}/health").json()["status"] == "failed")


def test_requests_share_the_engine(tmp_path: Path) -> None:
    bodies, session = [{"prompt": f"p{i}", "max_new_tokens": 60} for i in range(8)], Held(threading.Event())
    with live_server(config_in(tmp_path), session) as (url, app), ThreadPoolExecutor(8) as pool:
        wait_ready(url)
        work = [pool.submit(httpx.post, f"{url}/generate", json=body) for body in bodies]
        until(lambda: app.state.server.worker.queued == 8)
        session.go.set()
        found = [item.result().json()["text"] for item in work]
    assert found == [text_of(str(body["prompt"]), 60) for body in bodies]
    assert session.most == 8


def test_metrics_parse_and_count(served: httpx.Client) -> None:
    served.post("/generate", json={"prompt": "hi", "max_new_tokens": 2})
    page = served.get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(page.text)}
    assert families["hildanext_tokens"].samples[0].value > 0
    assert families["hildanext_generation_seconds"].type == "histogram"
    cached, asked = (families[f"hildanext_{name}"].samples[0].value for name in ("cached_tokens", "prompt_tokens"))
    assert 0 < families["hildanext_prefix_hit_rate"].samples[0].value == cached / asked == 2 / 5
    widths = ("tokens_per_forward", "tokens_per_forward_unfused", "positions_per_forward")
    for name in ("queue_requests", *widths, "memory_bytes", "up"):
        assert families[f"hildanext_{name}"].type == "gauge"
    routes = {sample.labels["route"] for sample in families["hildanext_http_requests"].samples}
    assert "/generate" in routes and not any("?" in route for route in routes)


def test_every_reply_has_the_security_headers_and_an_id(served: httpx.Client) -> None:
    for path in ("/", "/health", "/static/main.js", "/nothing"):
        headers = served.get(path).headers
        assert (
            "default-src 'none'" in headers["content-security-policy"]
            and headers["x-content-type-options"] == "nosniff"
        )
        assert headers["x-request-id"] and "access-control-allow-origin" not in headers


def test_the_page_names_no_other_host(served: httpx.Client, project: Path) -> None:
    for path in (project / "backend/src/hildanext/api/static").iterdir():
        outside = re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", path.read_text())
        assert [place for place in outside if place != "http://www.w3.org"] == []


def test_the_log_has_one_line_per_request_without_its_text(
    served: httpx.Client, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    reply = served.post("/generate", json={"prompt": "my secret prompt", "max_new_tokens": 4})
    written, deadline = "", time.monotonic() + PATIENCE
    while reply.headers["x-request-id"] not in written and time.monotonic() < deadline:
        time.sleep(0.02)
        written += capfd.readouterr().err
    time.sleep(0.1)  # a second line about the same request would be a fault
    written += capfd.readouterr().err
    lines = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
    (line,) = [line for line in lines if line["id"] == reply.headers["x-request-id"]]
    assert line["tokens"] == 4 and line["forwards"] == 2 and line["status"] == 200 and line["seconds"] >= 0
    assert "secret" not in json.dumps(line)


KEY = "a-key-of-some-length"


def test_with_a_key_only_the_page_and_health_are_open(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with live_server(config_in(tmp_path), ScriptedSession(), key=KEY) as (url, _):
        wait_ready(url)
        assert {httpx.get(url + path).status_code for path in ("/", "/health", "/static/style.css")} == {200}
        body = {"prompt": "hi", "max_new_tokens": 2}
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"x-api-key": KEY[:-1]}):
            assert httpx.post(f"{url}/generate", json=body, headers=headers).status_code == 401
            assert httpx.get(f"{url}/jobs", headers=headers).status_code == 401
            assert httpx.get(f"{url}/openapi.json", headers=headers).status_code == 401
        for headers in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}):
            assert httpx.post(f"{url}/generate", json=body, headers=headers).status_code == 200
    assert KEY not in "".join(capfd.readouterr())


def test_beyond_loopback_a_key_is_demanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HILDANEXT_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="--insecure"):
        api_key(Config.model_validate({"serve": {"host": "0.0.0.0"}}))
    assert api_key(Config.model_validate({"serve": {"host": "0.0.0.0", "insecure": True}})) is None
    assert api_key(Config()) is None
    (tmp_path / "key").write_text(KEY + "\n")
    assert api_key(Config.model_validate({"serve": {"host": "::", "api_key_file": str(tmp_path / "key")}})) == KEY
    monkeypatch.setenv("HILDANEXT_API_KEY", "short")
    with pytest.raises(ConfigError, match="16"):
        api_key(Config())


def test_the_key_leaves_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("HILDANEXT_API_KEY", KEY)
    assert api_key(Config()) == KEY and "HILDANEXT_API_KEY" not in os.environ


def test_other_hosts_and_other_origins_are_refused(served: httpx.Client) -> None:
    assert served.get("/health", headers={"host": "evil.example"}).status_code == 403
    assert served.post("/jobs/x/cancel", headers={"origin": "http://evil.example"}).status_code == 403
    assert served.options("/generate", headers={"origin": "http://evil.example"}).status_code in (403, 405)
