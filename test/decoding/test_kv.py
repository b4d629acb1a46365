# Rules about keys: the engine against a slow decoder that has a mask per layer, head, query and key, and refusals.
# Entry points: the tests. Both ways of leaving keys out (a mask, or not reading them) are the same rule.
# A rule that drops nothing is the plain engine to the bit; what is committed or begun together changes nothing.
"""Selection and compression of keys, and blocks in parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from decoding import checks, oracle_keys
from decoding.reference import MASK, scripted
from decoding.subjects import BLOCK, Subject, decoded, engine, opened, prompt, request

from hildanext.config.decode import DecodeConfig
from hildanext.decoding import compression, kept_keys, parts, state
from hildanext.decoding.compressors.knorm import Knorm
from hildanext.decoding.compressors.kvzap import Kvzap
from hildanext.decoding.compressors.mage import Mage
from hildanext.decoding.compressors.window import Window
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.request import Request, Result
from hildanext.errors import DecodeError
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.key_scores import KeyScores

RULES: dict[str, dict[str, Any]] = {
    "window": {"type": "window", "sinks": 2, "recent": 9},
    "knorm": {"type": "knorm", "budget": 6, "recent": 8},
    "kvzap": {"type": "kvzap", "threshold": 0.0, "sinks": 1, "recent": 8},
    "mage": {"type": "mage", "budget": 5},
    "sub_blocks": {"type": "sub_blocks", "size": 4},
}
NOTHING: dict[str, Any] = {
    "window": Window(recent=1000), "knorm": Knorm(budget=1000), "kvzap": Kvzap(threshold=-math.inf),
    "mage": Mage(budget=1000), "sub_blocks": {"type": "sub_blocks", "size": BLOCK},
}  # fmt: skip
TAU = 0.15


def scored(model: Any) -> KeyScores:
    """Random scores for a model."""
    config, source = model.config, torch.Generator().manual_seed(3)
    shape = (config.num_hidden_layers, config.num_key_value_heads, config.hidden_size)
    return KeyScores(torch.randn(*shape, generator=source) * 0.3, torch.randn(*shape[:2], generator=source) * 0.1, {})


def made_for(random_model: Any, family: str) -> Subject:
    made, norms = opened(random_model, family), torch.Generator().manual_seed(5)
    made.parts.denoiser.key_scores = scored(made.model)
    for ours, theirs in zip(made.parts.denoiser.model.model.layers, made.model.model.layers, strict=True):
        if family == "qwen3":  # as they come, all keys are equally long
            drawn = torch.rand(ours.self_attn.k_norm.weight.shape, generator=norms) + 0.5
            ours.self_attn.k_norm.weight.data.copy_(drawn)
            theirs.self_attn.k_norm.weight.data.copy_(drawn)
    return made


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def subject(request: Any, random_model: Any) -> Subject:
    return made_for(random_model, request.param)


@pytest.fixture(scope="module")
def llama(random_model: Any) -> Subject:
    return made_for(random_model, "llama")


def shifted(subject: Subject) -> Subject:
    """The same model, read one position earlier."""
    own = HFDenoiser(subject.parts.denoiser.model, MASK, shift="clean").eval()
    own.key_scores = subject.parts.denoiser.key_scores
    return Subject(SimpleNamespace(**{**vars(subject.parts), "denoiser": own}), subject.model)


def asked_for(rule: Any, length: int, new: int = 19, policy: str = "no editing", **fields: Any) -> Request:
    return request(prompt(length, 2), new, policy, kv=rule, **fields)


def new_tokens(result: Result) -> dict[int, tuple[int, float]]:
    """{position: (token, its probability)} when it was filled."""
    places = [one for step in result.trace for one in step["tokens"] if one["state"] == "new"]
    return {one["pos"]: (one["id"], one["confidence"]) for one in places}


def agree(found: dict[int, tuple[int, float]], wanted: dict[int, tuple[int, float]], limit: int) -> None:
    """Up to the limit, behind which nothing need be filled."""
    places = {place for place in wanted if place < limit}
    assert {place for place in found if place < limit} == places and places
    for place in places:
        token, sure = wanted[place]
        assert found[place] == (token, pytest.approx(sure, abs=2e-5)), place


@pytest.mark.parametrize("mode", ["gather", "mask"])
@pytest.mark.parametrize("name", ["window", "knorm", "kvzap", "mage"])
def test_tokens_and_probabilities_are_those_of_a_slow_decoder_with_a_mask_per_head(
    subject: Subject, name: str, mode: str
) -> None:
    for length in (3, 2 * BLOCK + 1):
        scores = subject.parts.denoiser.key_scores
        wanted = oracle_keys.decode(
            subject.model, RULES[name], prompt(length, 2), (19, BLOCK), tau=TAU, scores=scores
        )  # fmt: skip
        result = decoded(subject, asked_for({**RULES[name], "mode": mode}, length, trace=True))
        agree(new_tokens(result), wanted, length + 19)
        assert not result.exact and "approximation" in result.notes[-1]


@pytest.mark.parametrize("every", [0, 1, 2])
def test_a_block_in_parts_is_that_of_a_slow_decoder_with_old_keys(subject: Subject, every: int) -> None:
    for length in (3, 2 * BLOCK):
        wanted = oracle_keys.decode_parts(subject.model, 4, prompt(length, 2), (19, BLOCK), tau=TAU, every=every)
        rule = {**RULES["sub_blocks"], "every": every}
        agree(new_tokens(decoded(subject, asked_for(rule, length, trace=True))), wanted, length + 19)


@pytest.mark.parametrize("name", ["window", "knorm", "mage"])
def test_a_shifted_model_reads_the_last_token_again_and_its_key_stays(llama: Subject, name: str) -> None:
    rule, length = RULES[name], 2 * BLOCK + 1
    wanted = oracle_keys.decode(llama.model, rule, prompt(length, 2), (19, BLOCK), tau=TAU, shift=True)
    agree(new_tokens(decoded(shifted(llama), asked_for(rule, length, trace=True))), wanted, length + 19)


@pytest.mark.parametrize("every", [0, 2])
def test_a_block_in_parts_of_a_shifted_model(llama: Subject, every: int) -> None:
    for length in (3, 2 * BLOCK):
        wanted = oracle_keys.decode_parts(
            llama.model, 4, prompt(length, 2), (19, BLOCK), tau=TAU, every=every, shift=True
        )  # fmt: skip
        rule = {**RULES["sub_blocks"], "every": every}
        agree(new_tokens(decoded(shifted(llama), asked_for(rule, length, trace=True))), wanted, length + 19)


@pytest.mark.parametrize("name", NOTHING)
def test_a_rule_that_leaves_nothing_out_is_the_plain_engine_to_the_bit(subject: Subject, name: str) -> None:
    for policy, more in (("editing", {"temperature": 0.8, "seed": 4}), ("remask", {})):
        plain, none = (
            decoded(subject, asked_for(rule, 19, policy=policy, logprobs=2, **more), fuse=False)
            for rule in (None, NOTHING[name])
        )
        assert none.token_ids == plain.token_ids and none.record == plain.record
        assert none.exact and none.notes == plain.notes


@pytest.mark.parametrize("name", ["window", "kvzap", "mage", "sub_blocks"])
def test_companions_prefill_in_pieces_preemption_and_guidance_change_nothing(llama: Subject, name: str) -> None:
    asked = [
        asked_for(RULES[name], 27), asked_for(None, 27), asked_for(RULES[name], 33, policy="editing", cfg_scale=0.5),
        asked_for(RULES["window"], 12, policy="editing"), asked_for(None, 27),
    ]  # fmt: skip
    alone = [decoded(llama, one).token_ids for one in asked]
    assert [one.token_ids for one in Driver(engine(llama)).run(asked)] == alone
    assert decoded(llama, asked[0], step_tokens=BLOCK).token_ids == alone[0]
    made, steps, found = engine(llama, step_tokens=2 * BLOCK), 0, dict[int, Any]()
    numbers = [made.submit(one) for one in asked]
    while made.pending:
        found |= {event.request: event.result.token_ids for event in made.step() if event.kind == "done"}
        steps += 1
        made.preempt(numbers[steps % len(numbers)])
    assert [found[number] for number in numbers] == alone and not made.store.lengths


def test_keys_under_a_rule_are_shared_with_nobody(llama: Subject) -> None:
    made = engine(llama)
    for rule in ("window", "mage"):
        made.generate(asked_for(RULES[rule], 33))
    assert not made.sharing.tree.bytes
    first, second = (made.generate(asked_for(None, 33)) for _ in range(2))
    assert (first.metrics.cached_tokens, second.metrics.cached_tokens) == (0, 32)
    assert made.generate(asked_for(RULES["window"], 33)).metrics.cached_tokens == 0
    assert first.token_ids == second.token_ids == decoded(llama, asked_for(None, 33)).token_ids


@pytest.mark.parametrize("name", ["mage", "sub_blocks"])
def test_what_only_selects_commits_the_exact_keys_of_its_text(
    llama: Subject, name: str, policy: str = "edit freely"
) -> None:
    made = engine(llama)
    made.submit(asked_for(RULES[name], 13, 30, policy=policy))
    made.step()
    live, held = made.running[0], 0
    while made.pending:
        keys = live.kept[0]
        if keys.length > held:
            held = keys.length
            with torch.no_grad():
                ids = live.canvas.tokens[None, :held]
                seen = checks.mask(held, BLOCK)
                cache = llama.model(input_ids=ids, attention_mask=seen, use_cache=True).past_key_values
            for layer, wanted in enumerate(cache.layers):
                own = keys.layers[layer]
                torch.testing.assert_close(own.key[:, :held], wanted.keys[0], atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(own.value[:, :held], wanted.values[0], atol=1e-5, rtol=1e-5)
        made.step()
    assert held >= 4 * BLOCK


def test_memory_shrinks_to_what_is_kept_and_the_result_says_how_much(llama: Subject) -> None:
    rule = Window(sinks=2, recent=14)
    made = engine(llama, step_tokens=4 * BLOCK)
    made.submit(asked_for(rule, 20 * BLOCK, 4 * BLOCK))
    sizes, most = list[int](), 0
    while made.pending:
        made.step()
        if made.running:
            (keys,) = made.running[0].kept
            sizes.append(keys.bytes())
            most = max(most, *(layer.count for layer in keys.layers.values()))
            columns = [layer.count for layer in keys.layers.values()]
    assert columns == [16] * len(columns) and most <= 20 * BLOCK and sizes[-1] < max(sizes) / 3
    note = decoded(llama, asked_for(rule, 20 * BLOCK, 4 * BLOCK)).notes[-1]
    assert note == "kv window: an approximation; 9 % of the committed keys were kept to the end"


def planted(monkeypatch: Any, owner: Any, name: str, made: Any, check: Callable[[], Any]) -> None:
    """The check fails with the error in place and passes without it."""
    check()
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, made)
        with pytest.raises((AssertionError, RuntimeError)):
            check()


def test_planted_errors_in_dropping_selecting_and_refreshing_are_seen(llama: Subject, monkeypatch: Any) -> None:
    slow = test_tokens_and_probabilities_are_those_of_a_slow_decoder_with_a_mask_per_head
    recent = compression.Known.recent
    shorter = lambda self, count: recent(self, count - 1)  # noqa: E731
    planted(monkeypatch, compression.Known, "recent", shorter, lambda: slow(llama, "window", "gather"))
    columns = lambda held, order: held[:, : order.shape[1]]  # noqa: E731
    planted(monkeypatch, kept_keys, "_gathered", columns, lambda: slow(llama, "knorm", "gather"))

    def stays(self: Any, opened: int | None) -> None:
        self.phase = "all" if opened is None else "first" if self.block < 0 else "later"
        self.block = 0 if opened is not None else self.block

    planted(monkeypatch, kept_keys.KeptKeys, "turn", stays, lambda: slow(llama, "mage", "mask"))
    window = parts.PartedCanvas.window

    def never(self: Any, budget: int, fuse: bool) -> Any:
        if self.opened and self.opened[0].span.start > self.committed:
            return state.Window(self.opened[0].span.start, self.opened[0].span.stop, self.opened)
        return window(self, budget, fuse)

    parted = test_a_block_in_parts_is_that_of_a_slow_decoder_with_old_keys
    planted(monkeypatch, parts.PartedCanvas, "window", never, lambda: parted(llama, 0))


def test_a_planted_drop_in_the_middle_of_a_prompt_or_a_commit_of_a_selecting_look_is_seen(
    llama: Subject, monkeypatch: Any
) -> None:
    commit = kept_keys.KeptKeys.commit
    early = lambda self, count, dropping: commit(self, count, True)  # noqa: E731
    pieces = test_companions_prefill_in_pieces_preemption_and_guidance_change_nothing
    planted(monkeypatch, kept_keys.KeptKeys, "commit", early, lambda: pieces(llama, "window"))
    exact = test_what_only_selects_commits_the_exact_keys_of_its_text
    editing = ("edit freely", "editing", "penalised")
    looked = lambda: [exact(llama, "mage", policy) for policy in editing]  # noqa: E731
    planted(monkeypatch, Mage, "keeps_looks", True, looked)


def test_what_cannot_work_is_refused_by_name(llama: Subject) -> None:
    rule, made = RULES["window"], BlockEngine(scripted(lambda *_: {1: 0.9}), DecodeConfig(block=BLOCK))
    with pytest.raises(DecodeError, match="kv: this model is told by a mask"):
        made.submit(Request.of(prompt_ids=(1, 2), kv="window"))
    with pytest.raises(DecodeError, match="kv: nothing is kept with decode.cache=false"):
        engine(llama, cache=False).submit(asked_for(rule, 3))
    with pytest.raises(DecodeError, match="kv: a search reads"):
        engine(llama).submit(Request.of(prompt_ids=(1, 2), kv=rule, policy="order_token"))
    for name in ("mage", "sub_blocks"):
        with pytest.raises(DecodeError, match="kv: it chooses for one block at a time"):
            engine(llama).submit(asked_for(RULES[name], 3, window_blocks=2))
    with pytest.raises(DecodeError, match="kv: parts of 3 positions do not divide blocks of 8"):
        engine(llama).submit(asked_for({"type": "sub_blocks", "size": 3}, 3))
    with pytest.raises(DecodeError, match="did you mean 'knorm'"):
        engine(llama).submit(asked_for("knrom", 3))
    with pytest.raises(DecodeError, match=r"(?s)kv: 1 problem.*did you mean 'recent'"):
        engine(llama).submit(asked_for({"type": "window", "recnt": 3}, 3))


def test_trained_scores_are_asked_for(random_model: Any) -> None:
    plain = opened(random_model, "qwen3")
    with pytest.raises(DecodeError, match="kv: this model has no trained key scores.*hildanext key-scores"):
        engine(plain).submit(asked_for("kvzap", 3))


def test_the_result_says_which_rule_was_used_and_the_engine_holds_mask_nowhere(llama: Subject) -> None:
    result = decoded(llama, asked_for("knorm", 5))
    assert result.preset is not None
    assert result.preset["kv"] == {"type": "knorm", "mode": "gather", "budget": 1024, "recent": 128}
    assert MASK not in result.token_ids and result.exact
