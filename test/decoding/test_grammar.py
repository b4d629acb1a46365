# Structured output: whatever the model says, the text matches, ends within its room, and leaves other requests alone.
# Entry points: pytest.
# The models are one that says anything at random over the bundled tokenizer, and the bundled child itself.
"""Texts under a grammar."""

from __future__ import annotations

import json
import random
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from decoding.schemas import fits, schema
from stand_in import StandIn
from torch import Tensor

import hildanext
from hildanext.config.decode import DecodeConfig
from hildanext.decoding import grammar as grammars
from hildanext.decoding import guide as guides
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.events import Done
from hildanext.decoding.request import Request, Result
from hildanext.errors import DecodeError
from hildanext.models.meta import HildaMeta

pytest.importorskip("llguidance")
PERSON = {
    "type": "object", "required": ["name", "age"], "additionalProperties": False,
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
}  # fmt: skip


class Anything(StandIn):
    """Random logits that depend on the position alone, so that a text does not depend on company."""

    def __call__(
        self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Any = None, select: Tensor | None = None
    ) -> Tensor:
        assert select is not None
        rows = [self._row(int(place)) for place in positions[select]]
        return torch.stack(rows) if rows else torch.zeros(0, self.vocab_size)

    def _row(self, place: int) -> Tensor:
        return 4 * torch.randn(self.vocab_size, generator=torch.Generator().manual_seed(place))


@pytest.fixture(scope="module")
def model() -> Any:
    return hildanext.load("tiny")


@pytest.fixture(scope="module")
def anything(model: Any) -> Any:
    size, mask = model.denoiser.vocab_size, model.denoiser.mask_id
    denoiser = Anything(vocab_size=size, mask_id=mask)
    return SimpleNamespace(denoiser=denoiser, tokenizer=model.tokenizer, meta=HildaMeta(block=16))


def asked(text: Any, kind: str = "json_schema", **fields: Any) -> Request:
    values = {"prompt": "One day", "max_new_tokens": 300, "temperature": 1.0, **fields}
    return Request.of(grammar={"type": kind, "text": text}, **values)


def answers(parts: Any, requests: list[Request], **settings: Any) -> list[Result]:
    """Eight together."""
    found = []
    for start in range(0, len(requests), 8):
        driver = Driver(BlockEngine(parts, DecodeConfig(block=16, **settings)))
        found += driver.run(requests[start : start + 8])
    return found


def in_room(parts: Any, wanted: dict[str, Any], source: random.Random, **fields: Any) -> Request:
    """A request whose room is a little more than the shortest text that is known, so that most have to hurry."""
    request = asked(wanted, **fields)
    assert request.grammar is not None
    tokenizer, size = parts.tokenizer, parts.denoiser.vocab_size
    shortest = guides.Guide.of(request.grammar, tokenizer, size, frozenset({0}), 4096).ending
    assert shortest is not None
    return request.model_copy(update={"max_new_tokens": len(shortest) + 1 + source.choice([0, 1, 3, 9, 30])})


def test_texts_of_random_schemas_always_fit(anything: Any) -> None:
    source, wanted = random.Random(0), [schema(seed) for seed in range(150)]
    requests = [in_room(anything, one, source, seed=seed) for seed, one in enumerate(wanted)]
    found = answers(anything, requests, cache=False)
    wrong = [(one, result.text) for one, result in zip(wanted, found, strict=True) if not fits(result.text, one)]
    assert not wrong and {result.finish_reason for result in found} == {"eos"}
    for request, result in zip(requests, found, strict=True):
        assert result.metrics.tokens <= (request.max_new_tokens or 0)
    assert any("brought to an end" in note for result in found for note in result.notes)
    assert any(not result.notes for result in found)


def test_the_bundled_child_fits_too(model: Any) -> None:
    source, wanted = random.Random(1), [schema(seed) for seed in range(500, 508)]
    requests = [in_room(model.loaded, one, source, seed=seed, temperature=0.0) for seed, one in enumerate(wanted)]
    found = answers(model.loaded, requests)
    assert all(fits(result.text, one) for one, result in zip(wanted, found, strict=True))


@pytest.mark.parametrize("text", [r"[0-9]{3}-[0-9]{4}", "(yes|no|maybe)( sir)?", "a{3,6}b*", "[äöü🙂]{4}"])
def test_a_regular_expression_is_matched(anything: Any, text: str) -> None:
    for result in answers(anything, [asked(text, "regex", seed=seed, max_new_tokens=40) for seed in range(8)]):
        assert re.fullmatch(text, result.text) and result.finish_reason == "eos"


@pytest.mark.parametrize(("kind", "text"), [
    ("lark", 'start: item ("," item)*\nitem: /[a-c]/ | "(" start ")"'),
    ("gbnf", 'root ::= item ("," item)*\nitem ::= [a-c] | "(" root ")"'),
])  # fmt: skip
def test_a_grammar_is_matched(anything: Any, kind: str, text: str) -> None:
    def flat(found: str) -> bool:
        while (inner := re.sub(r"\([a-c](,[a-c])*\)", "a", found)) != found:
            found = inner
        return re.fullmatch(r"[a-c](,[a-c])*", found) is not None

    results = answers(anything, [asked(text, kind, seed=seed, max_new_tokens=30) for seed in range(8)])
    assert all(flat(result.text) for result in results) and any("(" in result.text for result in results)


def test_any_object_is_an_object(anything: Any) -> None:
    request = asked("", "json_object", max_new_tokens=60)
    for result in answers(anything, [request.model_copy(update={"seed": seed}) for seed in range(8)]):
        assert isinstance(json.loads(result.text), dict)


def test_what_is_forced_is_written_at_once(model: Any) -> None:
    value = {"const": {"city": "Berlin and Hamburg", "ok": [True, None, 12]}}
    result = answers(model.loaded, [asked(value)])[0]
    assert json.loads(result.text) == value["const"] and result.metrics.grammar is not None
    counts = result.metrics.grammar
    blocks = -(-(result.metrics.prompt_tokens + result.metrics.tokens) // 16)
    assert counts["forced"] == counts["tokens"] == result.metrics.tokens > 20 and counts["forwards"] == blocks
    free = answers(model.loaded, [asked(PERSON, max_new_tokens=60)])[0].metrics
    assert free.grammar is not None and free.grammar["tokens_per_forward"] > 1.3
    assert free.forwards >= free.grammar["forwards"] and free.grammar["tokens"] == free.tokens


def test_only_the_leftmost_choice_of_a_forward_is_the_models(model: Any) -> None:
    result = answers(model.loaded, [asked(PERSON, max_new_tokens=50, trace=True, logprobs=0)])[0]
    ends, filled = [], 2
    for line in result.trace:
        new = sorted(token["pos"] for token in line["tokens"] if token["state"] == "new")
        assert new and new == list(range(filled, filled + len(new))), "filled from the left, without gaps"
        assert not any(token["state"] == "edited" for token in line["tokens"])
        filled = new[-1] + 1
        ends.append(filled)
    assert result.record is not None and max(one.step for one in result.record) == len(ends)


def test_modes_that_edit_change_nothing(model: Any) -> None:
    found = [
        answers(model.loaded, [asked(PERSON, max_new_tokens=50, **fields)])[0].text
        for fields in ({}, {"mode": "S_MODE"}, {"tau_mask": 0.0, "tau_edit": 0.0}, {"window_blocks": 4, "tau_add": 0.0})
    ]
    assert len(set(found)) == 1 and fits(found[0], PERSON)


def test_company_and_preemption_change_no_text(model: Any) -> None:
    ruled = [asked(PERSON, max_new_tokens=50, seed=seed) for seed in range(3)]
    free = [Request.of(prompt="One day", max_new_tokens=30, seed=seed, temperature=1.0) for seed in range(3)]
    alone = [answers(model.loaded, [one])[0].text for one in (*ruled, *free)]
    engine, source, found = BlockEngine(model.loaded, DecodeConfig(block=16)), random.Random(1), dict[int, str]()
    order = {engine.submit(one): index for index, one in enumerate((*ruled, *free))}
    while engine.pending:
        if engine.running and source.random() < 0.2:
            engine.preempt(source.choice(engine.running).number)
        found |= {order[e.request]: e.result.text for e in engine.step() if isinstance(e, Done)}
    assert [found[index] for index in range(6)] == alone


def test_guidance_and_the_uncached_decoder_give_texts_that_fit(model: Any) -> None:
    cached = answers(model.loaded, [asked(PERSON, max_new_tokens=45, cfg_scale=0.5)])[0].text
    plain = answers(model.loaded, [asked(PERSON, max_new_tokens=45, cfg_scale=0.5)], cache=False)[0].text
    assert cached == plain and fits(cached, PERSON)


def test_the_least_room_is_enough_and_less_is_refused(anything: Any) -> None:
    source = random.Random(0)
    request = in_room(anything, PERSON, source)
    least = len(guides.Guide.of(request.grammar, anything.tokenizer, 998, frozenset({0}), 4096).ending or ()) + 1  # type: ignore[arg-type]
    tight = answers(anything, [request.model_copy(update={"max_new_tokens": least})], cache=False)[0]
    assert fits(tight.text, PERSON) and tight.metrics.tokens == least
    with pytest.raises(DecodeError, match=f"max_new_tokens: {least - 1} leave no room.* has {least} with their end"):
        answers(anything, [request.model_copy(update={"max_new_tokens": least - 1})])


@pytest.mark.parametrize(("text", "words"), [
    ({"type": "array", "uniqueItems": True}, "uniqueItems"), ({"not": {"type": "string"}}, "not"),
    ({"type": "string", "format": "colour"}, "colour"), ({"$ref": "#/nowhere"}, "nowhere"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"), ({"$ref": "http://localhost/x"}, "localhost"),
    ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"), ("{", "no JSON"), ("[]", "no JSON object"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "max_new_tokens"),
])  # fmt: skip
def test_parts_of_a_schema_that_are_not_served_are_named(anything: Any, text: Any, words: str) -> None:
    with pytest.raises(DecodeError, match=words) as found:
        answers(anything, [asked(text)])
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("kind", "text", "words"), [
    ("regex", "[a-", "unclosed"), ("lark", "start: nothing", "nothing"), ("gbnf", "root ::= (", "GBNF"),
])  # fmt: skip
def test_a_grammar_that_is_none_is_refused(anything: Any, kind: str, text: str, words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        answers(anything, [asked(text, kind)])


@pytest.mark.parametrize("fields", [{"stop": ("a",)}, {"ignore_eos": True}, {"infill": True, "max_new_tokens": None}])
def test_what_would_cut_or_fill_otherwise_is_refused(anything: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(DecodeError, match=next(iter(fields))):
        answers(anything, [asked(PERSON, **fields)])


def test_without_the_package_there_is_one_line(anything: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammars, "find_spec", lambda name: None)
    with pytest.raises(DecodeError, match=r"llguidance is not installed; pip install"):
        answers(anything, [asked(PERSON)])


def test_a_limit_of_the_library_ends_the_text_on_the_known_way(anything: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = guides.Guide.of(asked(PERSON).grammar, anything.tokenizer, 998, frozenset({0}), 100)  # type: ignore[arg-type]
    broken = SimpleNamespace(
        is_error=lambda: True, is_stopped=lambda: True, is_accepting=lambda: False, compute_bitmask=lambda: bytes(125)
    )
    known = list(guide.ending or ())
    guide.matcher = broken
    tokens = torch.full((100,), anything.denoiser.mask_id)
    assert guide._write(tokens, list(range(100))) == 100
    assert tokens[: len(known)].tolist() == known and set(tokens[len(known) :].tolist()) == {0}
    assert guide.done and not guide.broken and fits(anything.tokenizer.decode(known), PERSON)


def misplaced(patch: Any) -> None:
    true = guides.Guide.masked
    patch.setattr(guides.Guide, "masked", lambda self, scores, *rest: true(self, scores.roll(1, 0), *rest))
    patch.setattr(guides.Guide, "_take", lambda self, token, sure=False: FORGOTTEN(self, token, sure))


def FORGOTTEN(self: Any, token: int, sure: bool) -> bool:
    self.matcher.consume_token(token)
    self.tokens, self.room, self._known = self.tokens + 1, self.room - 1, False
    self.done = token in self.ends
    return True


def never_closing(patch: Any) -> None:
    patch.setattr(guides.Guide, "_ending_after", lambda self, token, after: [])


def one_too_late(patch: Any) -> None:
    true = guides.Guide._closing
    patch.setattr(guides.Guide, "_closing", lambda self, matcher, most: true(self, matcher, most + 2))


@pytest.mark.parametrize("plant", [misplaced, never_closing, one_too_late])
def test_a_planted_error_is_noticed(anything: Any, monkeypatch: pytest.MonkeyPatch, plant: Any) -> None:
    source, wanted = random.Random(0), [schema(seed) for seed in range(24)]
    requests = [in_room(anything, one, source, seed=seed) for seed, one in enumerate(wanted)]
    plant(monkeypatch)
    found = answers(anything, requests, cache=False)
    ended = all(result.finish_reason == "eos" for result in found)
    assert not (ended and all(_fits(result.text, one) for one, result in zip(wanted, found, strict=True)))


def _fits(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return fits(text, wanted)
    except ValueError:
        return False
