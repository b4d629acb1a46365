# Log-probabilities and scores over HTTP: the `openai` package reads them, the bundled model gives them.
# Entry points: pytest.
# What a record holds is checked in decoding/test_record.py; here it is what reaches a client, whole and streamed.
"""Log-probabilities and scores of the server."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from api.live import config_in, live_server, wait_ready

import hildanext
from hildanext.api.openai_logprobs import Offsets, chat_logprobs
from hildanext.decoding.request import Request
from hildanext.decoding.text import TextStream
from hildanext.engines.opening import OpenEngine

TURNS: Any = [{"role": "user", "content": "Write a story about Lily and a fox."}]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = config_in(tmp_path_factory.mktemp("project"), engines=[{"type": "tiny"}], prompt_characters=2000)
    with live_server(config) as (address, _):
        wait_ready(address)
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def model() -> Any:
    return hildanext.load("tiny")


def test_a_chat_has_a_logprob_per_token_of_its_text(client: openai.OpenAI, model: Any) -> None:
    asked: Any = {"model": "tiny", "messages": TURNS, "max_tokens": 200, "logprobs": True, "top_logprobs": 2, "seed": 3}
    choice = client.chat.completions.create(**asked).choices[0]
    assert choice.logprobs is not None and choice.logprobs.content and choice.finish_reason == "stop"
    content = choice.logprobs.content
    assert "".join(one.token for one in content) == choice.message.content
    wanted = model.generate(TURNS, max_new_tokens=200, seed=3, temperature=0.0, logprobs=2).record
    told = [(one.token, one.logprob, one.model_extra) for one in content]
    assert told == [
        (one.text, pytest.approx(one.logprob), {"step": one.step, "edits": one.edits}) for one in wanted[:-1]
    ]
    assert wanted[-1].text == "" and all(one.logprob <= 0 and len(one.top_logprobs) == 2 for one in content)
    assert bytes(sum((one.bytes or [] for one in content), [])).decode() == choice.message.content


def test_a_stream_carries_the_same_logprobs(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": TURNS, "max_tokens": 60, "logprobs": True, "top_logprobs": 1}
    whole = client.chat.completions.create(**asked).choices[0].logprobs
    chunks = list(client.chat.completions.create(**asked, stream=True))
    found = [one for c in chunks if c.choices[0].logprobs for one in c.choices[0].logprobs.content or []]
    assert whole is not None and found == whole.content
    for chunk in chunks:
        text = chunk.choices[0].delta.content or ""
        told = chunk.choices[0].logprobs
        assert text == ("".join(one.token for one in told.content or []) if told else "")


def test_completions_have_the_older_shape_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "prompt": "One day", "max_tokens": 40, "logprobs": 3}
    choice = client.completions.create(**asked).choices[0]
    told = choice.logprobs
    assert told is not None and told.tokens and told.token_logprobs and told.top_logprobs and told.text_offset
    assert "".join(told.tokens) == choice.text and all(len(top) == 3 for top in told.top_logprobs)
    assert all(choice.text[at:].startswith(token) for at, token in zip(told.text_offset, told.tokens, strict=True))
    parts = [c.choices[0].logprobs for c in client.completions.create(**asked, stream=True) if c.choices[0].logprobs]
    assert sum((part.text_offset or [] for part in parts), []) == told.text_offset
    assert sum((part.token_logprobs or [] for part in parts), []) == told.token_logprobs


def test_nothing_is_told_that_was_not_asked_for(client: openai.OpenAI, url: str) -> None:
    asked: Any = {"model": "tiny", "messages": TURNS, "max_tokens": 5}
    assert client.chat.completions.create(**asked).choices[0].logprobs is None
    assert client.chat.completions.create(**asked, logprobs=False).choices[0].logprobs is None
    with pytest.raises(openai.BadRequestError, match="top_logprobs: only with logprobs") as found:
        client.chat.completions.create(**asked, top_logprobs=2)
    assert found.value.param == "top_logprobs"
    body = {"prompt": "One day", "max_new_tokens": 4}
    assert httpx.post(f"{url}/generate", json=body).json()["record"] is None
    stream = httpx.post(f"{url}/generate", json=body | {"stream": True}).text
    commits = [line for line in stream.split("\n\n") if line.startswith("event: commit")]
    assert commits and not any("record" in line for line in commits)


def test_the_native_stream_and_reply_hold_the_record(url: str) -> None:
    body = {"prompt": "One day", "max_new_tokens": 20, "logprobs": 1, "trace": True}
    reply = httpx.post(f"{url}/generate", json=body).json()
    assert [one["id"] for one in reply["record"]] == reply["token_ids"]
    last = [t for line in reply["trace"] for t in line["tokens"] if t["state"] not in ("mask", "given")]
    final = {t["pos"]: (t["step"], t["edits"], t["logprob"]) for t in last}
    first = min(final)
    told = [(one["step"], one["edits"], one["logprob"]) for one in reply["record"]]
    assert told == [final[place] for place in range(first, first + 20)]
    stream = httpx.post(f"{url}/generate", json=body | {"stream": True}).text
    commits = [json.loads(e.split("data: ")[1]) for e in stream.split("\n\n") if e.startswith("event: commit")]
    assert [one for commit in commits for one in commit["record"]] == reply["record"]


def test_scores_are_those_of_python_and_labels_rank(url: str, model: Any) -> None:
    labels = [" ball.", " fox.", " the lake at night with a boat"]
    body = {"texts": labels, "context": "Lily had a red", "values": True}
    reply = httpx.post(f"{url}/score", json=body).json()
    wanted = model.score(labels, "Lily had a red")
    assert [one["nats"] for one in reply["scores"]] == pytest.approx([one.nats for one in wanted])
    assert reply["block"] == model.block and reply["kind"] == "bound" and reply["engine"] == "tiny"
    for one, text in zip(reply["scores"], labels, strict=True):
        assert one["nats"] == pytest.approx(math.fsum(value["nats"] for value in one["values"]))
        assert "".join(value["text"] for value in one["values"]) == text and one["tokens"] == len(one["values"])
    assert reply["scores"][0]["nats"] < reply["scores"][1]["nats"] < reply["scores"][2]["nats"]
    one_each = {"texts": labels, "contexts": ["Lily had a red"] * 3, "kind": "bound"}
    again = httpx.post(f"{url}/score", json=one_each).json()["scores"]
    assert [one["nats"] for one in again] == pytest.approx([one["nats"] for one in reply["scores"]])
    assert "values" not in again[0]


def test_scores_left_to_right_are_the_causal_models(url: str, model: Any) -> None:
    text = "One day a boy called Noah went to the island."
    body = {"texts": [text], "kind": "autoregressive", "values": True}
    reply = httpx.post(f"{url}/score", json=body).json()["scores"][0]
    ids = list(model.tokenizer(text)["input_ids"])
    batch = model.batch([[model.tokenizer.eos_token_id, *ids]], 1)
    wanted = model.nll(batch).autoregressive
    assert reply["nats"] == pytest.approx(wanted.nats - _last(wanted, model, batch), rel=1e-4)
    assert reply["exact"] and reply["standard_error"] == 0.0


def _last(wanted: Any, model: Any, batch: Any) -> float:
    """The term of the end token, which a batch has and a scored text has not."""
    bare: float = sum(nats for nats, _ in wanted.without_ends)
    return float(wanted.nats) - bare


@pytest.mark.parametrize(("change", "words"), [
    ({"texts": []}, "texts"), ({"texts": [""]}, "texts"), ({"samples": 3}, "samples"),
    ({"contexts": ["a"]}, "contexts"), ({"texts": ["the fox " * 400]}, "texts"),
    ({"samples": 0, "texts": ["the fox and the boat at the lake and the dog"], "block": 16}, "samples"),
    ({"texts": ["a " * 600], "context": ""}, "window"),
])  # fmt: skip
def test_what_cannot_be_scored_is_refused_in_one_line(url: str, change: dict[str, Any], words: str) -> None:
    reply = httpx.post(f"{url}/score", json={"texts": ["a", "b"], "context": "c"} | change)
    assert reply.status_code in (400, 413, 422) and words in reply.json()["error"]["message"]
    assert httpx.get(f"{url}/health").json()["status"] == "ready"


def test_a_long_text_is_scored_draw_by_draw_and_agrees(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " morning a boy called Noah went to the island. He had a red ball."
    short = model.score(text, "One day", samples=64)
    monkeypatch.setattr("hildanext.measure.scores.LONG", 10)
    found = model.score(text, "One day", samples=64)
    assert len(found.values) == len(short.values) and found.standard_error > 0
    assert found.nats == pytest.approx(short.nats, abs=4 * (found.standard_error + short.standard_error))
    assert math.fsum(one.nats for one in found.values) == pytest.approx(found.nats)
    one = model.score(text, "One day", block=1, samples=2)
    assert one.nats == pytest.approx(model.score(text, "One day", block=1, samples=4).nats)


def test_a_long_scoring_lets_others_go_on(model: Any) -> None:
    from functools import partial

    from hildanext.decoding.events import Done
    from hildanext.engines.task import Task, TaskResult
    from hildanext.engines.transformers import NativeSession
    from hildanext.measure.scores import Scoring, scores

    engine = OpenEngine(NativeSession("tiny", model.loaded, model.config))
    pairs = [("One day", f" {word}") for word in ("a", "the", "Lily", "Tom") for _ in range(8)]
    task = engine.submit(Task(prompt="", pieces=partial(scores, pairs=pairs, how=Scoring())))
    short = engine.submit(Request.of(prompt="One day", max_new_tokens=1, tau_mask=0.0, tau_edit=None))
    ends = [event for _ in range(8) for event in engine.step() if isinstance(event, Done)]
    assert [end.request for end in ends] == [short, task]
    assert isinstance(ends[1].result, TaskResult) and len(ends[1].result.found) == 32
    again = engine.submit(Task(prompt="", pieces=partial(scores, pairs=pairs, how=Scoring())))
    engine.step()
    engine.cancel(again)
    assert engine.pending == 0


def test_bytes_of_half_a_character_are_its_own() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: at for at, letter in enumerate(letters)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=raw)
    ids = fast("a 🙂é")["input_ids"]
    text = TextStream(fast, ())
    found = b"".join(bytes(text.raw(token) or text.shown(token).encode()) for token in ids)
    assert found.decode() == "a 🙂é" and text.raw(ids[0]) is None
    assert chat_logprobs(()) == {"content": [], "refusal": None} and Offsets().logprobs(())["tokens"] == []
