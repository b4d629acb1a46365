# The engine under scripted models: forward counts at the limits, edits that repair or oscillate, and where text ends.
# Entry points: the tests; scripted models answer by a rule, so every expected number is counted by hand.
# Vocabulary of the scripts: 20 tokens, 19 is [MASK], 18 ends a text where a test says so.
"""Engine rules."""

from __future__ import annotations

from typing import Any

import pytest
from decoding.reference import Scripted, scripted

from hildanext.config.decode import DecodeConfig
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.events import Commit, Done, Draft
from hildanext.decoding.request import Request
from hildanext.errors import DecodeError

BLOCK, MASK, END = 4, 19, 18


def counting(tokens: list[int], positions: list[int], index: int) -> dict[int, float]:
    return {positions[index] % 17: 0.6}


def engine(rule: Any = counting, **settings: Any) -> BlockEngine:
    return BlockEngine(scripted(rule), DecodeConfig(block=BLOCK, **settings))


def ask(new: int = 8, **fields: Any) -> Request:
    editing = {} if "policy" in fields else {"tau_edit": None}
    return Request.of(prompt_ids=(1, 2, 3, 4, 5, 6), max_new_tokens=new, **{**editing, **fields})


def test_tau_of_one_fills_one_mask_per_forward() -> None:
    result = engine().generate(ask(10, tau_mask=1.0))
    assert result.token_ids == tuple(range(6, 16))
    assert result.metrics.forwards == result.metrics.steps == 10
    assert engine(fuse=False).generate(ask(10, tau_mask=1.0)).metrics.forwards == 10 + 1 + 2


def test_tau_of_zero_fills_a_block_per_forward() -> None:
    result = engine().generate(ask(10, tau_mask=0.0))
    assert result.metrics.forwards == 3
    assert result.metrics.tokens_per_forward == 10 / 3
    assert result.metrics.mask_share == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"tau_mask": 0.0},
        {"tau_mask": 1.0},
        {"mode": "Q_MODE", "tau_edit": 0.5},
        {"mode": "S_MODE", "tau_edit": 0.0, "overrides": {"max_post_steps": 2}},
        {"tau_mask": 0.5, "cfg_scale": 1.0},
    ],
)
def test_forwards_unfused_and_positions_are_those_of_an_engine_that_fuses_nothing(fields: dict[str, Any]) -> None:
    found = {}
    for fuse in (True, False):
        one, wide = engine(fuse=fuse), list[int]()
        plain = one.denoiser

        class Counting:
            def __getattr__(self, name: str) -> Any:
                return getattr(plain, name)  # noqa: B023

            def __call__(self, tokens: Any, positions: Any, *more: Any, **named: Any) -> Any:
                wide.append(int((positions >= 4).sum()))  # noqa: B023
                return plain(tokens, positions, *more, **named)  # noqa: B023

        one.denoiser = Counting()  # type: ignore[assignment]
        found[fuse] = one.generate(ask(10, **fields)).metrics
        assert (found[fuse].positions, found[fuse].forwards) == (sum(wide), len(wide))
        assert found[fuse].positions_per_forward == sum(wide) / len(wide)
    fused, apart = found[True], found[False]
    assert fused.tokens == apart.tokens and apart.fused == 0 and fused.fused is not None and fused.fused >= 1
    assert fused.forwards + fused.fused == apart.forwards and fused.positions == apart.positions
    assert fused.tokens_per_forward_unfused == apart.tokens_per_forward == apart.tokens_per_forward_unfused


def test_without_a_store_nothing_is_committed_and_every_forward_is_as_wide_as_the_text() -> None:
    metrics = engine(cache=False).generate(ask(10, tau_mask=0.0)).metrics
    assert metrics.fused == 0 and metrics.forwards == 3
    assert metrics.positions == (8 - 4) + (12 - 4) + (16 - 4)


def test_tau_one_is_the_static_quota_with_one_mask_per_step() -> None:
    def rule(tokens: list[int], positions: list[int], index: int) -> dict[int, float]:
        return {positions[index] % 17: 0.3 + 0.1 * (positions[index] * 7 % 5)}

    threshold, static = engine(rule), engine(rule)
    first = list(Driver(threshold).stream(ask(8, tau_mask=1.0)))
    second = list(Driver(static).stream(ask(8, policy={"type": "static_quota"})))
    order = [[event.tokens for event in events if isinstance(event, Draft)] for events in (first, second)]
    assert order[0] == order[1]


def test_tau_edit_of_one_is_no_editing_plus_one_look_per_block() -> None:
    plain = engine().generate(ask(10, tau_mask=0.0))
    looked = engine().generate(ask(10, tau_mask=0.0, tau_edit=1.0))
    assert looked.token_ids == plain.token_ids
    assert looked.metrics.forwards == plain.metrics.forwards + 3
    assert sum(looked.metrics.edits_applied) == 0


def oscillating(tokens: list[int], positions: list[int], index: int) -> dict[int, float]:
    return {8 if tokens[index] == 7 else 7: 0.9}


def test_an_oscillating_model_stops_after_exactly_the_post_budget() -> None:
    for budget in (0, 1, 5, 16):
        request = ask(4, tau_mask=0.5, tau_edit=0.0, overrides={"max_post_steps": budget})
        metrics = engine(oscillating).generate(request).metrics
        first_block = metrics.edits_applied[: budget + 1]
        assert first_block == (0,) + (2,) * budget
        assert metrics.steps == 2 * (budget + 1)
        assert sum(metrics.edits_reverted) == 2 * max(0, budget - 1) + 4 * max(0, budget - 1)


def test_editing_repairs_a_wrong_token_and_without_editing_it_stays() -> None:
    def rule(tokens: list[int], positions: list[int], index: int) -> dict[int, float]:
        return {3 if tokens[index] == MASK else 5: 0.9}

    assert engine(rule).generate(ask(6, tau_edit=0.5)).token_ids == (5,) * 6
    assert engine(rule).generate(ask(6, tau_edit=None)).token_ids == (3,) * 6
    assert engine(rule).generate(ask(6, tau_edit=0.95)).token_ids == (3,) * 6


def test_the_prompt_is_never_edited() -> None:
    def rule(tokens: list[int], positions: list[int], index: int) -> dict[int, float]:
        return {11: 0.99}

    made = engine(rule)
    made.submit(ask(6, tau_edit=0.0))
    live = made.waiting[0]
    while made.pending:
        made.step()
    assert live.canvas.tokens[:6].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("policy", ["threshold_edit", "static_quota", "random", "factor", "remask", "entropy_bound"])
def test_a_model_that_always_predicts_the_mask_ends_and_never_emits_it(policy: str) -> None:
    def rule(tokens: list[int], positions: list[int], index: int) -> dict[int, float]:
        return {MASK: 0.999}

    result = engine(rule).generate(Request.of(prompt_ids=(1,), max_new_tokens=15, policy={"type": policy}))
    assert MASK not in result.token_ids and len(result.token_ids) == 15
    assert result.metrics.forwards <= 4 * (BLOCK + 16 + 2)


def test_forwards_per_block_are_bounded() -> None:
    def rule(tokens: list[int], positions: list[int], index: int) -> dict[int, float]:
        return {(sum(tokens) + index) % 17: 0.4}

    without = engine(rule).generate(ask(16, tau_mask=0.9)).metrics
    assert without.forwards <= 5 * (BLOCK + 1)
    editing = engine(rule, fuse=False).generate(ask(16, tau_mask=0.9, tau_edit=0.0)).metrics
    assert editing.forwards <= 5 * (BLOCK + 16 + 1) + 1


def test_a_policy_that_never_finishes_is_stopped(monkeypatch: Any) -> None:
    from hildanext.core.types import Canvas, Stats, Update
    from hildanext.decoding.policies.static_quota import StaticQuota

    def nothing(self: Any, stats: Stats, canvas: Canvas) -> Update:
        none = canvas.tokens == -1
        return Update(canvas.tokens.clone(), none, none)

    monkeypatch.setattr(StaticQuota, "step", nothing)
    result = engine().generate(ask(8, policy={"type": "static_quota"}))
    assert result.token_ids == tuple(range(6, 14))


def ends(ids: set[int]) -> BlockEngine:
    made = engine()
    made.denoiser.end_ids = frozenset(ids)
    return made


def test_the_first_end_token_is_kept_and_nothing_after_it() -> None:
    result = ends({9, 11}).generate(ask(12, tau_mask=0.0))
    assert result.token_ids == (6, 7, 8, 9) and result.finish_reason == "eos"
    ignored = ends({9}).generate(ask(12, tau_mask=0.0, ignore_eos=True))
    assert len(ignored.token_ids) == 12 and ignored.finish_reason == "length"


def test_the_length_asked_for_is_the_length_given() -> None:
    for new in (1, 2, 3, 5, 9):
        result = engine().generate(ask(new))
        assert len(result.token_ids) == new == result.metrics.tokens and result.finish_reason == "length"


def test_commits_add_up_to_the_result_and_drafts_never_show_committed_positions() -> None:
    events = list(Driver(engine()).stream(ask(11, tau_mask=0.7)))
    committed: list[int] = []
    for event in events:
        if isinstance(event, Draft):
            assert (
                min(token.pos for token in event.tokens) <= 6 + len(committed) <= max(t.pos for t in event.tokens) + 1
            )
        if isinstance(event, Commit):
            committed.extend(event.token_ids)
    assert isinstance(events[-1], Done) and tuple(committed) == events[-1].result.token_ids


def test_only_masked_positions_get_logits_without_editing() -> None:
    made = engine()
    seen: list[int] = []
    call = Scripted.__call__

    def spy(self: Any, *rest: Any, **named: Any) -> Any:
        seen.append(int(named["select"].sum()))
        return call(self, *rest, **named)

    made.denoiser.__class__ = type("Spy", (Scripted,), {"__call__": spy})
    made.generate(ask(6, tau_mask=1.0))
    assert seen == [2, 1, 4, 3, 2, 1]


def test_mask_tokens_in_a_prompt_and_unknown_arguments_are_errors() -> None:
    with pytest.raises(DecodeError, match="mask token"):
        engine().submit(Request.of(prompt_ids=(1, MASK)))
    with pytest.raises(DecodeError, match="did you mean 'temperature'"):
        Request.of(prompt="x", temprature=1.0)
    with pytest.raises(DecodeError, match="exactly one of"):
        Request.of(prompt="x", prompt_ids=(1,))
    with pytest.raises(DecodeError, match="Q_MODE"):
        engine().submit(ask(4, mode="QUALITY"))
    with pytest.raises(DecodeError, match="tau_mask"):
        engine().submit(ask(4, tau_mask=0.5, policy={"type": "factor"}))
    with pytest.raises(DecodeError, match="no tokenizer"):
        engine().submit(Request.of(prompt="hello"))


def test_presets_are_overridden_by_the_model_folder_then_by_the_request() -> None:
    calibrated = {"Q_MODE": {"tau_mask": 0.61}}
    made = BlockEngine(scripted(counting, decode=calibrated, block=8), DecodeConfig())
    assert made.block == 8
    plain = made.generate(Request.of(prompt_ids=(1,), max_new_tokens=2)).preset
    assert (plain["mode"], plain["source"], plain["tau_mask"], plain["tau_edit"]) == (
        "Q_MODE",
        "model folder",
        0.61,
        0.5,
    )
    own = made.generate(
        Request.of(prompt_ids=(1,), max_new_tokens=2, tau_mask=0.2, overrides={"max_post_steps": 3})
    ).preset
    assert (own["tau_mask"], own["max_post_steps"]) == (0.2, 3)
    table = made.generate(Request.of(prompt_ids=(1,), max_new_tokens=2, mode="S_MODE")).preset
    assert (table["source"], table["tau_mask"], table["tau_edit"], table["max_post_steps"]) == ("table", 0.5, 0.0, 16)
    careful = made.generate(Request.of(prompt_ids=(1,), max_new_tokens=2, mode="CONSERVATIVE")).preset
    assert (careful["tau_mask"], careful["tau_edit"]) == (0.95, 0.9)


def test_the_post_budget_is_set_by_the_model_folder_the_configuration_or_the_request() -> None:
    for budget, folder, config, overrides in (
        (16, {}, "preset", {}), (3, {"max_post_steps": 3}, "preset", {}), (0, {"max_post_steps": 3}, 0, {}),
        (5, {"max_post_steps": 3}, 0, {"max_post_steps": 5}),
    ):  # fmt: skip
        made = BlockEngine(
            scripted(oscillating, decode={"S_MODE": folder}),
            DecodeConfig(block=BLOCK, mode="S_MODE", max_post_steps=config),
        )
        result = made.generate(Request.of(prompt_ids=(1, 2, 3, 4), max_new_tokens=4, overrides=overrides))
        assert result.preset["max_post_steps"] == budget and len(result.metrics.edits_applied) == 1 + budget


def test_editing_without_post_steps_costs_the_forwards_of_no_editing() -> None:
    for tau_mask in (0.0, 0.5, 0.95, 1.0):
        plain = engine(oscillating, max_post_steps=0).generate(ask(14, tau_mask=tau_mask)).metrics
        edited = engine(oscillating, max_post_steps=0).generate(ask(14, tau_mask=tau_mask, tau_edit=0.5)).metrics
        looked = engine(oscillating, max_post_steps=1).generate(ask(14, tau_mask=tau_mask, tau_edit=0.5)).metrics
        assert edited.forwards == plain.forwards == looked.forwards - 4
        assert (sum(edited.edits_applied) > 0) == (tau_mask >= 0.95)


def test_a_trace_holds_the_canvas_after_every_step() -> None:
    result = engine().generate(ask(4, tau_mask=1.0, trace=True))
    assert len(result.trace) == result.metrics.steps
    first = result.trace[0]["tokens"]
    assert [token["state"] for token in first] == ["given", "given", "new", "mask"]
    assert first[2]["pos"] == 6 and 0.6 < first[2]["confidence"] < 0.62
