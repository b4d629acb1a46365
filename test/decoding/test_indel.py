# Editing with DELETE and INSERT: a scripted model whose actions are known, the rules one by one, and what is refused.
# Entry points: the tests. Vocabulary of the scripts: 20 tokens, 19 is [MASK], 18 INSERT, 17 DELETE.
# A script that knows the target answers with the labels of core/levenshtein.py, so every draft must end as the target.
"""Policy threshold_indel."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from decoding.reference import Scripted

from hildanext.config.decode import DecodeConfig
from hildanext.core.levenshtein import Controls, labels
from hildanext.core.types import Canvas, Stats
from hildanext.decoding.admission import require
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.policies.threshold_indel import Memory, ThresholdIndel
from hildanext.decoding.request import Request
from hildanext.errors import DecodeError
from hildanext.models.meta import HildaMeta

BLOCK, DELETE, INSERT, MASK = 8, 17, 18, 19
IDS = Controls(DELETE, INSERT, MASK)
SURE = 0.9


class Parts:
    """A scripted model with edit actions, and without a tokenizer."""

    def __init__(self, rule: Any, acts: bool = True) -> None:
        self.denoiser: Any = Scripted(rule)
        self.denoiser.edit_ids = (DELETE, INSERT) if acts else None
        self.tokenizer, self.meta = None, HildaMeta()


def editor(target: list[int], given: int = 0) -> Any:
    """A rule that answers each position with its label towards `target`, and the given ones with themselves."""

    def rule(tokens: list[int], positions: list[int], index: int) -> dict[int, float]:
        start = positions[index] // BLOCK * BLOCK
        first = positions.index(max(start, given))
        last = positions.index(start) + BLOCK
        own = labels(tokens[first:last], target[positions[first] : start + BLOCK], IDS)
        return {own[index - first] if index >= first else tokens[index]: SURE}

    return rule


def repaired(target: list[int], drafts: list[list[int]], given: int = 0, **fields: Any) -> Any:
    """The result, from blocks that begin as `drafts` behind a prompt of the first `given` target tokens."""
    engine = BlockEngine(Parts(editor(target, given)), DecodeConfig(block=BLOCK))
    policy = {"type": "threshold_indel", **fields}
    asked = Request.of(prompt_ids=tuple(target[:given]), max_new_tokens=len(target) - given, policy=policy, trace=True)
    engine.submit(asked)
    canvas = engine.waiting[0].canvas
    canvas.tokens[given:] = torch.tensor([token for draft in drafts for token in draft][given:])
    canvas.opened = ()
    canvas.refill()
    return Driver(engine).step, engine


def end(target: list[int], drafts: list[list[int]], given: int = 0, **fields: Any) -> Any:
    """The finished result of `repaired`."""
    _, engine = repaired(target, drafts, given, **fields)
    while engine.pending:
        done = [event for event in engine.step() if event.kind == "done"]
    return done[0].result


def damaged(source: random.Random, target: list[int]) -> list[int]:
    """A block with a token gone, one too many, one wrong, or masks."""
    made = list(target)
    for _ in range(source.randrange(1, 3)):
        kind, place = source.randrange(4), source.randrange(BLOCK)
        if kind == 0:
            made = [*made[:place], *made[place + 1 :], source.randrange(17)]
        elif kind == 1:
            made = [*made[:place], source.randrange(17), *made[place:]][:BLOCK]
        else:
            made[place] = MASK if kind == 2 else source.randrange(17)
    return made


def test_every_damaged_block_ends_as_the_target_whatever_stands_before_it() -> None:
    source = random.Random(0)
    for _ in range(25):
        target, given = [source.randrange(17) for _ in range(2 * BLOCK)], source.randrange(1, 6)
        first = [*target[:given], *damaged(source, [*target[given:BLOCK], *[0] * given])[: BLOCK - given]]
        result = end(target, [first, damaged(source, target[BLOCK:])], given)
        assert list(result.token_ids) == target[given:], (target, first)
        assert not {DELETE, INSERT, MASK} & set(result.token_ids)


def test_actions_are_counted_as_they_are_and_forwards_as_they_ran() -> None:
    target = list(range(BLOCK))
    result = end(target, [[0, 1, 9, 2, 3, 4, 5, 6]], 1)
    assert list(result.token_ids) == target[1:] and sum(result.metrics.edits_applied) == 1
    # the deletion, the mask that it left at the end, and a look that finds nothing
    assert result.metrics.edits_applied == (1, 0, 0) and result.metrics.forwards == 3
    assert result.metrics.tokens == BLOCK - 1 and result.metrics.mask_share == (1 / BLOCK, 0.0, 0.0)
    states = [[token["state"] for token in step["tokens"]] for step in result.trace]
    assert states[0] == ["given", *["kept"] * 6, "mask"] and states[1][-1] == "new"


def test_an_insertion_makes_room_and_what_falls_off_the_block_is_written_again() -> None:
    target = [*range(BLOCK), *range(8, 16)]
    result = end(target, [[0, 1, 3, 4, 5, 6, 7, 9], [8, 9, 10, 11, 12, 13, 14, 15]], 1)
    assert list(result.token_ids) == target[1:] and result.metrics.edits_applied[0] == 2


def canvas(tokens: list[int], memory: Any = None, step: int = 0) -> Canvas:
    here = torch.tensor(tokens)
    return Canvas(
        here, torch.ones(len(tokens), dtype=torch.bool), MASK, step, tokens.count(MASK), None, (), True, IDS, memory
    )


def stats(best: list[int], sure: list[float], others: int = 5) -> Stats:
    ranked = torch.tensor([[token, others, others + 1, others + 2] for token in best])
    p = torch.tensor(sure)
    return Stats(torch.tensor(best), p, None, None, ranked, p[:, None] * torch.tensor([1, 0.1, 0.05, 0.01]))


def test_more_masks_are_filled_than_were_put_in_while_the_blocks_own_are_left() -> None:
    policy = ThresholdIndel(tau_mask=0.95)
    memory = Memory(torch.tensor([True, True, True, False, False]), 0, {})
    update = policy.step(stats([1, 2, 3, 4, 6], [0.5, 0.4, 0.3, 0.2, 0.1]), canvas([MASK, MASK, MASK, MASK, 6], memory))
    assert update.unmasked.tolist() == [True, True, False, False, False]
    rest = Memory(torch.zeros(5, dtype=torch.bool), 0, {})
    update = policy.step(stats([1, 2, 3, 4, 6], [0.1] * 5), canvas([MASK, MASK, 9, MASK, 6], rest))
    assert update.unmasked.tolist() == [True, True, False, True, False]


def test_the_flag_of_a_blocks_own_masks_travels_with_them() -> None:
    update = ThresholdIndel(tau_mask=0.95).step(stats([INSERT, 2, 3, 4], [0.9] * 4), canvas([1, 2, MASK, MASK]))
    assert update.tokens.tolist() == [MASK, 1, 2, 3] and update.moved.tolist() == [-1, 0, 1, 2]
    assert not update.memory.original.any()
    update = ThresholdIndel(tau_mask=0.95).step(stats([DELETE, 2, 3, 4], [0.9] * 4), canvas([1, 2, MASK, MASK]))
    assert update.tokens.tolist() == [2, 3, MASK, MASK]
    assert update.memory.original.tolist() == [False, False, True, False]


def test_a_state_that_comes_again_takes_the_next_best_token_at_its_least_sure_place() -> None:
    policy, now = ThresholdIndel(), canvas([1, 2, 3, 4])
    first = policy.step(stats([7, 8, 3, 4], [0.9, 0.6, 0.9, 0.9], others=10), now)
    assert first.tokens.tolist() == [7, 8, 3, 4]
    again = policy.step(stats([7, 8, 3, 4], [0.9, 0.6, 0.9, 0.9], others=10), canvas([1, 2, 3, 4], first.memory))
    assert again.tokens.tolist() == [7, 10, 3, 4]


def test_a_model_that_never_settles_ends_at_the_cap_and_writes_no_control_token() -> None:
    for restless in (INSERT, DELETE):
        parts = Parts(lambda tokens, positions, index, token=restless: {token: 0.9})
        asked = Request.of(prompt_ids=(1, 2), max_new_tokens=BLOCK - 2, policy="threshold_indel", ignore_eos=True)
        result = BlockEngine(parts, DecodeConfig(block=BLOCK)).generate(asked)
        assert len(result.token_ids) == BLOCK - 2 and not {DELETE, INSERT, MASK} & set(result.token_ids)
        assert result.metrics.forwards <= BLOCK - 2 + 16 + 2


def test_edits_stop_at_the_budget() -> None:
    memory = Memory(torch.zeros(4, dtype=torch.bool), 15, {})
    update = ThresholdIndel().step(stats([7, 8, 9, 10], [0.6, 0.9, 0.7, 0.8]), canvas([1, 2, 3, 4], memory))
    assert update.tokens.tolist() == [1, 8, 3, 4] and update.memory.edits == 16
    after = ThresholdIndel().step(stats([7, 8, 9, 10], [0.9] * 4), canvas([1, 2, 3, 4], update.memory))
    assert after.tokens.tolist() == [1, 2, 3, 4]


def test_other_policies_are_never_shown_an_action() -> None:
    parts = Parts(lambda tokens, positions, index: {DELETE: 0.6, 3: 0.2})
    result = BlockEngine(parts, DecodeConfig(block=BLOCK)).generate(Request.of(prompt_ids=(1,), max_new_tokens=7))
    assert result.token_ids == (3,) * 7


def test_gaps_and_models_without_actions_are_refused() -> None:
    asked = Request.of(prompt_ids=(1, 2), policy="threshold_indel", max_new_tokens=4)
    with pytest.raises(DecodeError, match="this model has none"):
        BlockEngine(Parts(editor([0] * BLOCK), acts=False), DecodeConfig(block=BLOCK)).submit(asked)
    engine = BlockEngine(Parts(editor([0] * BLOCK)), DecodeConfig(block=BLOCK))
    engine.submit(asked)
    live = engine.waiting[0]
    live.canvas.editable[4] = False
    with pytest.raises(DecodeError, match="given ones stand still"):
        require(live.plan, engine.denoiser, live.canvas, True)


def test_planted_faults_are_seen(monkeypatch: Any) -> None:
    from hildanext.decoding.policies import threshold_indel

    for name, wrong in (
        ("moved", lambda actions, controls: list(range(len(actions)))),
        ("apply", lambda draft, actions, controls: [one if one < 17 else MASK for one in actions]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(threshold_indel, name, wrong)
            with pytest.raises((AssertionError, AttributeError)):
                test_the_flag_of_a_blocks_own_masks_travels_with_them()
                test_every_damaged_block_ends_as_the_target_whatever_stands_before_it()
