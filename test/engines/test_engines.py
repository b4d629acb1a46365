# Every engine keeps the same protocol; the choice between them is told with its reasons.
# Entry points: pytest.
# The contract tests run over the native sessions, over sglang against a fake server, and against a real one where
# HILDANEXT_SGLANG_URL names it, HILDANEXT_SGLANG_MODEL the same weights and HILDANEXT_SGLANG_THRESHOLD its threshold.
"""Engines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines.fake_sglang import FakeSGLang
from engines.toy import toy_folder

from hildanext import registry
from hildanext.config import Config
from hildanext.decoding.events import Commit, Done, Draft
from hildanext.decoding.request import Request
from hildanext.engines.choose import choose
from hildanext.engines.opening import OpenEngine
from hildanext.engines.protocol import EnginePlugin, Failed
from hildanext.engines.sglang import Client
from hildanext.errors import DecodeError, EngineError, ModelError, RunError
from hildanext.progress import Console

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, random_model: Callable[..., Any]) -> Path:
    return toy_folder(tmp_path_factory.mktemp("toy"), random_model)


def configured(folder: Path | str, *engines: dict[str, Any]) -> Config:
    return Config.model_validate(
        {
            "model": {"path": str(folder), "dtype": "float32", "device": "cpu"},
            "decode": {"block": 8, "tau_edit": None},
            "serve": {"engines": engines or ({"type": "transformers"},)},
        }
    )


def live_engine() -> OpenEngine:
    url, model = (os.environ.get(f"HILDANEXT_SGLANG_{name}", "") for name in ("URL", "MODEL"))
    if not url or not model:
        pytest.skip("no real sglang server: set HILDANEXT_SGLANG_URL and HILDANEXT_SGLANG_MODEL (the same weights)")
    info = Client(url.rstrip("/"), 30.0).call("GET", "/server_info")
    threshold = float(os.environ.get("HILDANEXT_SGLANG_THRESHOLD", "0.95"))
    section = {"type": "sglang", "url": url, "algorithm": info["dllm_algorithm"], "threshold": threshold}
    config = Config.model_validate({"model": {"path": model}, "serve": {"engines": (section,)}})
    return OpenEngine(*choose(config, QUIET))


@pytest.fixture(scope="module", params=["transformers", "sglang", "live sglang"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[OpenEngine]:
    config = configured(folder)
    if request.param == "live sglang":
        found = live_engine()
        yield found
        found.close()
        return
    if request.param == "transformers":
        yield OpenEngine(*choose(config, QUIET))
        return
    with FakeSGLang(config) as fake:
        engines = ({"type": "sglang", "url": fake.url, "algorithm": "LowConfidence", "threshold": 0.7},)
        found = OpenEngine(*choose(configured(folder, *engines), QUIET))
        yield found
        found.close()


def test_every_file_of_the_folder_is_an_engine_or_known_not_to_be() -> None:
    assert registry.names("engines") == ["dinfer", "latent", "llamacpp", "onnx", "sglang", "tiny", "transformers"]
    assert all(issubclass(registry.load("engines", name), EnginePlugin) for name in registry.names("engines"))


def test_an_open_engine_says_what_it_can_do(engine: OpenEngine) -> None:
    capability, facts = engine.session.capability, engine.session.facts
    assert capability.ok and capability.batch >= 1 and capability.devices
    assert capability.stream in ("step", "block", "end")
    assert facts.model and facts.block >= 1


def test_a_result_has_the_length_asked_for_and_names_its_engine(engine: OpenEngine) -> None:
    result = engine.generate(Request.of(prompt="abc", max_new_tokens=20, ignore_eos=True))
    assert len(result.token_ids) == 20 and result.finish_reason == "length"
    assert result.engine == engine.session.name


def test_commits_add_up_to_the_text(engine: OpenEngine) -> None:
    events = list(engine.stream(Request.of(prompt="abc", max_new_tokens=20, ignore_eos=True)))
    assert isinstance(events[-1], Done)
    assert "".join(event.text for event in events if isinstance(event, Commit)) == events[-1].result.text


def test_the_same_request_gives_the_same_text(engine: OpenEngine) -> None:
    request = Request.of(prompt="the fox", max_new_tokens=17)
    assert engine.generate(request).token_ids == engine.generate(request).token_ids


def test_a_batch_gives_what_each_request_gives_alone(engine: OpenEngine) -> None:
    requests = [Request.of(prompt=text, max_new_tokens=12) for text in ("a", "the boat", "once upon")]
    alone = [engine.generate(request).text for request in requests]
    assert [result.text for result in engine.run(requests)] == alone


def test_streams_and_submitted_requests_share_an_engine_and_lose_no_event(engine: OpenEngine) -> None:
    engine = OpenEngine(engine.session, ("an earlier engine",))
    requests = [Request.of(prompt=text, max_new_tokens=12) for text in ("a", "the boat", "once upon")]
    alone = [engine.generate(request).text for request in requests]
    number, first, second = engine.submit(requests[0]), *map(engine.stream, requests[1:])
    begun = [next(first)]
    texts = [
        "".join(event.text for event in (*events,) if isinstance(event, Commit))
        for events in (second, [*begun, *first])
    ]
    while engine.pending:
        engine.backlog.extend(engine.step())
    done = [event for event in engine.step() if isinstance(event, Done) and event.request == number]
    assert [done[0].result.text, *texts[::-1]] == alone and done[0].result.engine == engine.session.name
    assert done[0].result.reasons.count("an earlier engine") == 1
    assert engine.pending == 0 and engine.step() == []


def test_a_cancelled_request_leaves_nothing_behind(engine: OpenEngine) -> None:
    number = engine.session.submit(Request.of(prompt="abc", max_new_tokens=40))
    engine.session.step()
    engine.session.cancel(number)
    engine.session.cancel(number)
    assert engine.session.pending == 0
    assert engine.generate(Request.of(prompt="abc", max_new_tokens=4)).token_ids


def test_reset_forgets_every_request_and_the_session_goes_on(engine: OpenEngine) -> None:
    engine.session.submit(Request.of(prompt="abc", max_new_tokens=40))
    engine.session.step()
    engine.session.reset()
    assert engine.session.pending == 0
    assert engine.generate(Request.of(prompt="abc", max_new_tokens=4)).token_ids


@pytest.mark.parametrize("unknown", [10_000_000, 1 << 20])
def test_an_unknown_token_id_is_refused_before_it_can_fail_a_batch(engine: OpenEngine, unknown: int) -> None:
    with pytest.raises(DecodeError, match=f"token id {unknown} is none of this model's"):
        engine.session.submit(Request.of(prompt_ids=(5, unknown), max_new_tokens=4))
    assert engine.session.pending == 0


def test_an_impossible_request_is_refused_with_words(engine: OpenEngine) -> None:
    with pytest.raises(DecodeError):
        engine.session.submit(Request.of(prompt="abc", mode="FAST"))


def test_sglang_gives_the_tokens_of_our_engine(folder: Path) -> None:
    config = configured(folder)
    ours = OpenEngine(*choose(config, QUIET))
    with FakeSGLang(config) as fake:
        section = {"type": "sglang", "url": fake.url, "algorithm": "LowConfidence", "threshold": 0.7}
        theirs = OpenEngine(*choose(configured(folder, section), QUIET))
        request = Request.of(prompt="the river", max_new_tokens=16)
        assert theirs.generate(request).token_ids == ours.generate(request).token_ids


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"algorithm": "Other"}, "dllm_algorithm"),
        ({"block": 4}, "block"),
        ({"wrong": True}, "differ"),
        ({"status": 500}, "500"),
        ({"garbage": True}, "JSON"),
        ({"plain": True}, "block-diffusion"),
    ],
)
def test_sglang_refuses_a_server_that_is_not_the_same_model(folder: Path, fault: dict[str, Any], words: str) -> None:
    with FakeSGLang(configured(folder), **fault) as fake:
        plugin = registry.build(
            "engines", {"type": "sglang", "url": fake.url, "algorithm": "LowConfidence", "threshold": 0.7}
        )
        opening = plugin.open(configured(folder), QUIET)
    assert not opening.capability.ok and words in " ".join(opening.capability.reasons)


@pytest.fixture(scope="module")
def faked(folder: Path) -> Iterator[tuple[FakeSGLang, OpenEngine]]:
    with FakeSGLang(configured(folder)) as fake:
        section = {"type": "sglang", "url": fake.url, "algorithm": "LowConfidence", "threshold": 0.7}
        found = OpenEngine(*choose(configured(folder, section), QUIET))
        yield fake, found
        found.close()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("status", "status 500"), ("hang up", "without response"), ("cut", "before its end"), ("garbage", "half a"),
        ("list", "no JSON object"), ("error", "OOM"), ("ids", "no output_ids"), ("meta", "meta_info"),
    ],
)  # fmt: skip
def test_a_failing_reply_of_sglang_ends_its_own_request_only(
    faked: tuple[FakeSGLang, OpenEngine], fault: str, words: str
) -> None:
    fake, engine = faked
    requests = [Request.of(prompt=text, max_new_tokens=20, ignore_eos=True) for text in ("a", "spoilt!", "the boat")]
    alone = [engine.generate(request).text for request in (requests[0], requests[2])]
    fake.spoil = {engine.session.tokenizer("!")["input_ids"][-1]: fault}
    try:
        numbers = [engine.session.submit(request) for request in requests]
        done, failed = outcomes(engine)
    finally:
        fake.spoil = {}
    assert [done[number] for number in (numbers[0], numbers[2])] == alone
    assert list(failed) == [numbers[1]] and words in failed[numbers[1]]
    assert engine.generate(requests[1]).text


def outcomes(engine: OpenEngine) -> tuple[dict[int, str], dict[int, str]]:
    done: dict[int, str] = {}
    failed: dict[int, str] = {}
    while engine.session.pending:
        for event in engine.session.step():
            if isinstance(event, Failed):
                failed[event.request] = str(event.error)
            elif isinstance(event, Done):
                done[event.request] = event.result.text
    return done, failed


def test_a_request_that_fails_alone_raises_its_reason(faked: tuple[FakeSGLang, OpenEngine]) -> None:
    fake, engine = faked
    fake.spoil = {engine.session.tokenizer("?")["input_ids"][-1]: "status"}
    with pytest.raises(RunError, match="status 500"):
        engine.generate(Request.of(prompt="what?", max_new_tokens=8))


def test_sglang_without_a_server_says_so(folder: Path) -> None:
    plugin = registry.build("engines", {"type": "sglang", "url": "http://127.0.0.1:9"})
    assert "127.0.0.1:9" in plugin.open(configured(folder), QUIET).capability.reasons[0]


def test_sglang_refuses_what_its_server_decides(folder: Path) -> None:
    config = configured(folder)
    with FakeSGLang(config) as fake:
        section = {"type": "sglang", "url": fake.url, "algorithm": "LowConfidence", "threshold": 0.7}
        session, _ = choose(configured(folder, section), QUIET)
        with pytest.raises(DecodeError, match="tau_mask"):
            session.submit(Request.of(prompt="a", tau_mask=0.3))
        with pytest.raises(DecodeError, match="temperature"):
            session.submit(Request.of(prompt="a", temperature=0.7))
        session.close()


def test_the_choice_keeps_every_reason_on_the_way(folder: Path) -> None:
    session, reasons = choose(configured(folder, {"type": "dinfer"}, {"type": "tiny"}, {"type": "transformers"}), QUIET)
    assert session.name == "transformers"
    assert [reason.split(":")[0] for reason in reasons][-1] == "tiny" and reasons[0].startswith("dinfer: ")


def test_an_engine_behind_the_one_that_opens_is_not_imported(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dinfer", "sglang"):
        monkeypatch.delitem(sys.modules, f"hildanext.engines.{name}", raising=False)
    session, _ = choose(configured(folder, {"type": "transformers"}, {"type": "sglang"}, {"type": "dinfer"}), QUIET)
    assert session.name == "transformers"
    assert not {"hildanext.engines.dinfer", "hildanext.engines.sglang"} & set(sys.modules)


def test_results_carry_the_reasons_of_the_fallback(folder: Path) -> None:
    engine = OpenEngine(*choose(configured(folder, {"type": "dinfer"}, {"type": "transformers"}), QUIET))
    result = engine.generate(Request.of(prompt="abc", max_new_tokens=3))
    assert result.engine == "transformers" and result.reasons[0].startswith("dinfer: ")


def test_no_engine_is_an_error_with_all_reasons(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match=r"transformers: .*tiny: "):
        choose(configured(tmp_path, {"type": "transformers"}, {"type": "tiny"}), QUIET)


def test_a_path_that_leads_nowhere_is_no_matter_of_engines(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^model\.path .*no Hugging Face model folder"):
        choose(configured(tmp_path / "none", {"type": "transformers"}, {"type": "tiny"}), QUIET)


def test_the_bundled_model_never_replaces_a_folder_that_was_asked_for(folder: Path) -> None:
    opening = registry.build("engines", {"type": "tiny"}).open(configured(folder), QUIET)
    assert not opening.capability.ok and str(folder) in opening.capability.reasons[0]


def test_a_trace_has_drafts_only_when_asked_for(folder: Path) -> None:
    engine = OpenEngine(*choose(configured(folder), QUIET))
    request = Request.of(prompt="abc", max_new_tokens=8)
    assert any(isinstance(event, Draft) for event in engine.stream(request))
    assert not any(isinstance(event, Draft) for event in engine.stream(request, drafts=False))
