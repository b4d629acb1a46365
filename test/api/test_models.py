# Several models behind one server: chosen by name, loaded on demand, unloaded when idle, loaded anew when changed.
# Entry points: pytest.
# Two real models (the bundled child and a random one over characters) and, where order matters, scripted sessions
# that a test opens and finishes by events.
"""Several models."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from api.live import config_in, live_server, wait_ready
from api.scripted import Held
from engines.toy import toy_folder
from waiting import PATIENCE, until

from hildanext.api.app import create_app
from hildanext.api.entries import Entry, listed, room_of
from hildanext.api.fleet import Fleet
from hildanext.api.metrics import ServerMetrics
from hildanext.config import Config
from hildanext.config.places import with_values
from hildanext.decoding.request import Request
from hildanext.engines.choose import choose
from hildanext.errors import ConfigError, ModelError
from hildanext.progress import Console

ASKED = [(prompt, seed) for prompt in ("the fox ran", "old stone") for seed in (0, 1)]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, random_model: Callable[..., Any]) -> Path:
    return toy_folder(tmp_path_factory.mktemp("models") / "toy", random_model)


def pair(folder: Path, toy: Path, **serve: Any) -> Config:
    config = config_in(folder, models=["tiny", f"gibberish={toy}"], **serve)
    return with_values(config, {"decode.block": 16, "decode.max_new_tokens": 24, "model.dtype": "float32"})


def ask(url: str, model: str | None, prompt: str, seed: int) -> str:
    body = {"prompt": prompt, "seed": seed, "max_new_tokens": 24, "temperature": 0.8, "model": model}
    reply = httpx.post(f"{url}/generate", json=body)
    assert reply.status_code == 200, reply.text
    return str(reply.json()["text"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, toy: Path) -> dict[tuple[str, str, int], str]:
    """Every text by a server of that model alone, one request after the other."""
    texts: dict[tuple[str, str, int], str] = {}
    for name, path in (("tiny", "tiny"), ("gibberish", str(toy))):
        config = pair(tmp_path_factory.mktemp("alone"), toy)
        single = with_values(config, {"serve.models": (), "model.path": path})
        with live_server(single) as (url, _):
            wait_ready(url)
            texts |= {(name, prompt, seed): ask(url, None, prompt, seed) for prompt, seed in ASKED}
    return texts


def test_requests_to_two_models_at_once_get_what_each_says_alone(
    tmp_path: Path, toy: Path, alone: dict[tuple[str, str, int], str]
) -> None:
    with live_server(pair(tmp_path, toy)) as (url, _), ThreadPoolExecutor(12) as pool:
        wait_ready(url)
        states = {card["name"]: card["state"] for card in httpx.get(f"{url}/models").json()["models"]}
        assert states == {"tiny": "ready", "gibberish": "not loaded"}
        assert str(toy) in httpx.get(f"{url}/models").text and str(toy) not in httpx.get(f"{url}/health").text
        found = {key: pool.submit(ask, url, *key) for key in alone}
        assert {key: each.result() for key, each in found.items()} == alone
        assert ask(url, None, *ASKED[0]) == alone["tiny", *ASKED[0]]


def test_openai_clients_choose_a_model_by_its_name(
    tmp_path: Path, toy: Path, alone: dict[tuple[str, str, int], str]
) -> None:
    with live_server(pair(tmp_path, toy)) as (url, _):
        wait_ready(url)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny", "gibberish"]
        assert client.models.retrieve("gibberish").id == "gibberish"
        for name in ("gibberish", "tiny"):
            reply = client.completions.create(model=name, prompt=ASKED[1][0], seed=1, max_tokens=24, temperature=0.8)
            assert (reply.model, reply.choices[0].text) == (name, alone[name, *ASKED[1]])
        with pytest.raises(openai.NotFoundError, match="'tiny', 'gibberish'"):
            client.completions.create(model="other", prompt="x")


def test_a_budget_of_one_model_unloads_the_other_and_frees_its_weights(
    tmp_path: Path, toy: Path, alone: dict[tuple[str, str, int], str], capsys: pytest.CaptureFixture[str]
) -> None:
    config = pair(tmp_path, toy)
    most = max(entry.needs for entry in listed(config))
    config = with_values(config, {"serve.model_bytes": most})
    seen: list[weakref.ref[Any]] = []

    def watched(own: Config, console: Console) -> Any:
        session, reasons = choose(own, console)
        seen.append(weakref.ref(session.loaded.denoiser))
        return session, reasons

    app = create_app(config, Console(), choice=watched)
    fleet: Fleet = app.state.server.fleet
    with live_server(config, app=app) as (url, _):
        wait_ready(url)
        for key in [key for pair in zip(list(alone)[:2], list(alone)[-2:], strict=True) for key in pair]:
            assert ask(url, *key) == alone[key]
            assert fleet.loaded == 1
        assert "hildanext_model_unloads_total 3" in httpx.get(f"{url}/metrics").text
        gc.collect()
        assert [reference() is None for reference in seen] == [True, True, True, False]
    said = capsys.readouterr().err
    assert "model tiny: makes room for gibberish" in said and "model gibberish: loading" in said


@pytest.mark.parametrize("name", ["tiny", "gibberish"])
def test_no_default_dtype_that_loading_another_model_sets_changes_a_text(
    tmp_path: Path, toy: Path, alone: dict[tuple[str, str, int], str], name: str
) -> None:
    slots = {entry.name: entry for entry in listed(pair(tmp_path, toy))}
    session, _ = choose(slots[name].config, Console(quiet=True))
    torch.set_default_dtype(torch.bfloat16)
    try:
        for prompt, seed in ASKED[:2]:
            request = Request.of(prompt=prompt, seed=seed, max_new_tokens=24, temperature=0.8)
            assert session.engine.generate(request).text == alone[name, prompt, seed]
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_cannot_be_served_is_said_before_anything_is_loaded(tmp_path: Path, toy: Path) -> None:
    config = pair(tmp_path, toy)
    with pytest.raises(ConfigError, match="two models are called 'tiny'"):
        listed(with_values(config, {"serve.models": ("tiny", "tiny")}))
    with pytest.raises(ModelError, match="no such folder"):
        listed(with_values(config, {"serve.models": ("tiny", "nowhere")}))
    with pytest.raises(ConfigError, match=r"serve.models: tiny needs .* GiB"):
        room_of(with_values(config, {"serve.model_bytes": 1000}), listed(config))
    with pytest.raises(ConfigError, match="serve.name"):
        listed(with_values(config, {"serve.name": "x"}))
    only = listed(with_values(config, {"serve.models": (f"mine={toy}",)}))
    assert [(one.config.model.path, one.config.serve.name, one.needs) for one in only] == [(str(toy), "mine", 0)]


class Play:
    """A fleet of three scripted models of which the room holds two; `go[name]` lets one step, `opened` is the order."""

    def __init__(self, folder: Path, room: int = 2) -> None:
        config = config_in(folder)
        self.names = ("a", "b", "c")
        self.go = {name: threading.Event() for name in self.names}
        self.opened: list[str] = []
        self.sessions: dict[str, Held] = {}
        entries = [Entry(name, config, 1) for name in self.names]
        self.fleet = Fleet(entries, self._open, 64, ServerMetrics(), Console(quiet=True), room)
        self.fleet.start()
        self.loop: Any = _Loop()
        until(lambda: self.fleet.state == "ready")

    def _open(self, entry: Entry) -> Any:
        self.opened.append(entry.name)
        self.sessions[entry.name] = Held(self.go[entry.name])
        return self.sessions[entry.name], ()

    def ask(self, name: str) -> Any:
        request = Request.of(prompt=name, max_new_tokens=8)
        return self.fleet.submit(self.fleet.find(name), [request], False, self.loop)[0][1]

    def states(self) -> dict[str, str]:
        return {card["name"]: card["state"] for card in self.fleet.cards()}


class _Loop:
    def call_soon_threadsafe(self, call: Callable[..., None], *values: Any) -> None:
        call(*values)


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    made = Play(tmp_path)
    yield made
    for event in made.go.values():
        event.set()
    made.fleet.stop()


def test_the_idle_model_used_longest_ago_makes_room(play: Play) -> None:
    for name in ("a", "b"):
        play.go[name].set()
        ticket = play.ask(name)
        until(lambda ticket=ticket: ticket.over)
    ticket = play.ask("a")
    until(lambda: ticket.over)
    play.go["c"].set()
    last = play.ask("c")
    until(lambda: last.over)
    assert play.states() == {"a": "ready", "b": "not loaded", "c": "ready"}


def test_a_model_that_answers_is_never_unloaded_and_an_idle_one_goes_before_it(play: Play) -> None:
    busy = play.ask("a")
    play.go["b"].set()
    done = play.ask("b")
    until(lambda: done.over)
    waiting = play.ask("c")
    until(lambda: play.states()["c"] == "ready")
    assert play.states() == {"a": "ready", "b": "not loaded", "c": "ready"} and not busy.over and not waiting.over


def test_where_all_answer_the_newcomer_waits_until_one_has_finished_what_it_began(play: Play) -> None:
    busy = [play.ask("a"), play.ask("b")]
    until(lambda: play.states()["b"] == "ready")
    newcomer = play.ask("c")
    late = play.ask("a")  # a has to go: this one is answered after c
    assert play.states()["c"] == play.states()["a"] == "waiting" and not any(one.over for one in busy)
    first = play.sessions["a"]
    play.go["a"].set()
    until(lambda: busy[0].over and first.closed and play.states()["c"] != "waiting")
    assert not busy[1].over
    play.go["c"].set()
    play.go["b"].set()
    until(lambda: newcomer.over and late.over and busy[1].over)
    assert play.opened == ["a", "b", "c", "a"] and play.fleet.queued == 0


def test_a_folder_that_cannot_be_loaded_refuses_its_requests_and_leaves_the_others(tmp_path: Path, toy: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(toy, broken)
    config = with_values(pair(tmp_path, toy), {"serve.models": ("tiny", str(broken))})
    with live_server(config) as (url, _):
        wait_ready(url)
        (broken / "model.safetensors").write_bytes(b"no tensors")
        reply = httpx.post(f"{url}/generate", json={"prompt": "x", "model": "broken"})
        assert reply.status_code == 503 and "broken" in reply.json()["error"]["message"]
        health = httpx.get(f"{url}/health")
        assert health.status_code == 200 and health.json()["status"] == "degraded"
        assert health.json()["problem"].startswith("broken: ")
        ask(url, "tiny", *ASKED[0])
        shutil.copyfile(toy / "model.safetensors", broken / "model.safetensors")
        assert ask(url, "broken", *ASKED[0]) and httpx.get(f"{url}/health").json()["status"] == "ready"


def test_a_changed_folder_is_loaded_anew_and_what_runs_ends_on_the_old_weights(
    tmp_path: Path, random_model: Callable[..., Any], toy: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(toy, folder)
    config = with_values(pair(tmp_path, toy), {"serve.models": (f"one={folder}",), "decode.max_new_tokens": 120})
    body, go = {"prompt": "the fox", "max_new_tokens": 120, "ignore_eos": True}, threading.Event()
    with live_server(config) as (url, app), ThreadPoolExecutor(8) as pool:
        wait_ready(url)
        before = httpx.post(f"{url}/generate", json=body).json()["text"]
        same = httpx.post(f"{url}/models/one/reload").json()
        assert same == {"model": "one", "reloaded": False, "reason": same["reason"]} and "not changed" in same["reason"]
        _other_weights(folder)
        old = app.state.server.worker
        step = old.session.step
        old.session.step = lambda: step() if go.wait(PATIENCE) else []
        running = [pool.submit(httpx.post, f"{url}/generate", json=body) for _ in range(3)]
        until(lambda: app.state.server.fleet.queued == 3)
        assert httpx.post(f"{url}/models/one/reload").json()["reloaded"]
        assert app.state.server.worker is not old
        after = httpx.post(f"{url}/generate", json=body).json()["text"]
        assert after != before and not any(each.done() for each in running)
        go.set()
        assert {each.result().json()["text"] for each in running} == {before}
        until(lambda: old.session is None)
        (tmp_path / "none").write_bytes(b"no tensors")
        (tmp_path / "none").replace(folder / "model.safetensors")  # the weights in use are mapped from the old file
        reply = httpx.post(f"{url}/models/one/reload")
        assert reply.status_code == 409 and "the old one goes on" in reply.json()["error"]["message"]
        assert httpx.post(f"{url}/generate", json=body).json()["text"] == after
        assert httpx.post(f"{url}/models/two/reload").status_code == 404


def _other_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({name: -tensor for name, tensor in tensors.items()}, folder / "fresh", {"format": "pt"})
    (folder / "fresh").replace(folder / "model.safetensors")
