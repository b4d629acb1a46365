# Blocks shared between requests: the same texts with the cache on, off and evicting; what is taken, counted and kept.
# Entry points: the tests; the checks are in check_prefixes, and each is seen to fail with an error planted.
# The tree is tried against the plainest oracle: every beginning it was ever told.
"""Prefix cache."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from decoding import check_prefixes, checks
from decoding.check_prefixes import BODY, HEADS
from decoding.reference import MASK, loaded
from decoding.subjects import BLOCK, LETTERS, Letters, Subject, decoded, engine, opened, prompt, request
from decoding.sums import summing
from stand_in import StandIn

from hildanext.config.decode import DecodeConfig
from hildanext.decoding import sharing
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.prefixes import Kept, PrefixTree, Run
from hildanext.decoding.request import Request
from hildanext.decoding.store import KeysValues, StateStore
from hildanext.models.denoiser import HFDenoiser

EACH = 8


@pytest.fixture(scope="module")
def subject(random_model: Any) -> Subject:
    return opened(random_model, "qwen3")


def words(text: str) -> list[bytes]:
    return [letter.encode() for letter in text]


def block_of(text: str) -> float:
    """A number that depends on a block and all before it, as its keys do."""
    return float(sum((index + 1) * ord(letter) for index, letter in enumerate(text)))


def told(tree: PrefixTree, text: str, limit: int = 1 << 20) -> Run | None:
    def keep(first: int, last: int) -> Kept:
        values = torch.tensor([block_of(text[: place + 1]) for place in range(first, last)], dtype=torch.float64)
        return Kept({0: (KeysValues, (values.view(1, -1, 1),))})

    return tree.add("root", words(text), keep, EACH, limit)


def content(tree: PrefixTree, text: str) -> list[float]:
    found = tree.find("root", words(text))
    return [float(v) for run, size in found for v in run.kept.part(0, size).layers[0][1][0].flatten()]


def test_the_longest_known_beginning_is_found_with_what_belongs_to_it() -> None:
    source, tree, known = random.Random(1), PrefixTree(), set[str]()
    for _ in range(150):
        text = "".join(source.choice("ab") for _ in range(source.randrange(1, 9)))
        longest = next(n for n in range(len(text), -1, -1) if n == 0 or text[:n] in known)
        assert content(tree, text) == [block_of(text[: n + 1]) for n in range(longest)]
        if source.random() < 0.4:
            assert told(tree, text) is not None
            known |= {text[: n + 1] for n in range(len(text))}
    assert tree.bytes == EACH * len(known) == sum(run.kept.bytes for run in tree.runs)
    assert tree.find("another root", words("ab")) == []


def test_runs_are_given_up_from_the_ends_least_recently_used_first_and_used_ones_last() -> None:
    tree = PrefixTree()
    for text in ("aabb", "aacc", "xy"):
        told(tree, text)
    held = tree.find("root", words("aabb"))[-1][0]
    held.users += 1
    tree.find("root", words("xy"))
    assert tree.shrink(EACH * 6) and content(tree, "aacc") == content(tree, "aa")
    assert tree.shrink(EACH * 4) and content(tree, "xy") == [] and len(content(tree, "aabb")) == 4
    assert not tree.shrink(0) and tree.bytes == EACH * 4
    assert tree.shrink(0, force=True) and tree.bytes == 0 and not tree.roots and not tree.runs


def test_what_has_no_room_is_left_out_from_its_end() -> None:
    tree = PrefixTree()
    told(tree, "abcdef", limit=EACH * 4)
    assert len(content(tree, "abcdef")) == 4
    told(tree, "xyz", limit=EACH * 4)
    assert content(tree, "abcdef") == [] and len(content(tree, "xyz")) == 3
    tree.find("root", words("xyz"))[-1][0].users += 1
    assert told(tree, "uv", limit=EACH * 4) is None and told(tree, "q", limit=-1) is None
    assert tree.bytes == EACH * 3


def test_random_evictions_never_leave_a_wrong_block() -> None:
    source, tree = random.Random(2), PrefixTree()
    for _ in range(300):
        text = "".join(source.choice("ab") for _ in range(source.randrange(1, 9)))
        held = content(tree, text)
        assert held == [block_of(text[: n + 1]) for n in range(len(held))]
        told(tree, text, limit=EACH * source.randrange(4, 20))
        if tree.runs and source.random() < 0.3:
            tree.evict(source.choice([run for run in tree.runs if not run.below]))
        assert tree.bytes == sum(run.kept.bytes for run in tree.runs)


@pytest.mark.parametrize(
    ("seed", "settings"),
    [(1, {}), (2, {"evict": 0.5, "fuse": False}), (3, {"evict": 0.2, "preempt": 0.3, "step_tokens": 2 * BLOCK})],
)
def test_texts_are_those_of_engines_that_share_nothing(subject: Subject, seed: int, settings: dict[str, Any]) -> None:
    check_prefixes.prefixes_change_nothing(subject, seed, **settings)


def test_a_shifted_model_reads_the_token_before_its_block_from_shared_blocks(random_model: Any) -> None:
    parts = loaded(random_model("llama", seed=2))
    parts.denoiser = HFDenoiser(parts.denoiser.model, MASK, shift="clean").eval()
    check_prefixes.prefixes_change_nothing(Subject(parts, None), 4, evict=0.2)


def test_slots_and_shared_blocks_stay_within_the_limit(subject: Subject) -> None:
    check_prefixes.memory_is_bounded(subject, 40_000)


def poisoned(patch: Any) -> None:
    put = Kept.put
    patch.setattr(Kept, "put", lambda self, *where: put(Kept(_spoilt(self)), *where))


def _spoilt(kept: Kept) -> Any:
    return {i: (kind, tuple(one + 1.0 for one in tensors)) for i, (kind, tensors) in kept.layers.items()}


def keyed_by_their_own_tokens_only(patch: Any) -> None:
    keys = sharing._keys
    patch.setattr(sharing, "_keys", lambda tokens, block, whole: [b"", *keys(tokens, block, whole)[1:]])


def guided_like_the_plain_text(patch: Any) -> None:
    patch.setattr(sharing, "sequences", lambda live: (live.canvas.tokens,) * live.lanes)


def keys_one_position_off(patch: Any) -> None:
    put = Kept.put
    patch.setattr(Kept, "put", lambda self, *where: put(Kept(_rolled(self)), *where))


def _rolled(kept: Kept) -> Any:
    return {i: (kind, (key.roll(1, 1), *values)) for i, (kind, (key, *values)) in kept.layers.items()}


@pytest.mark.parametrize(
    "plant", [poisoned, keyed_by_their_own_tokens_only, guided_like_the_plain_text, keys_one_position_off]
)
def test_a_planted_error_is_noticed(subject: Subject, plant: Any, monkeypatch: Any) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check_prefixes.prefixes_change_nothing(subject, 1)


def test_a_tree_that_ignores_its_limit_is_noticed(subject: Subject, monkeypatch: Any) -> None:
    monkeypatch.setattr(PrefixTree, "shrink", lambda *_, **__: True)
    with pytest.raises(AssertionError):
        check_prefixes.memory_is_bounded(subject, 40_000)


def cached(made: BlockEngine, ids: tuple[int, ...], **fields: Any) -> int:
    found = made.generate(request(ids, 3, "static_quota", **fields)).metrics
    assert found.cached_tokens is not None and found.cached_tokens <= found.prompt_tokens
    return found.cached_tokens


def test_whole_blocks_of_a_known_beginning_are_taken_and_counted(subject: Subject) -> None:
    made, system = engine(subject), prompt(5 * BLOCK + 3, 7)
    assert cached(made, system) == 0
    assert cached(made, system) == cached(made, (*system, 1, 2)) == 5 * BLOCK
    assert cached(made, (*system[: 3 * BLOCK + 4], 1, 2)) == 3 * BLOCK
    assert cached(made, (1, *system)) == 0
    assert cached(made, system, block=BLOCK // 2) == 0 and cached(made, system, block=BLOCK // 2) == 5 * BLOCK
    assert cached(engine(subject), system) == 0, "another engine, another model"
    assert cached(engine(subject, prefix_bytes=0), system) == 0


@pytest.mark.parametrize(("name", "value"), [("dtype", torch.bfloat16), ("shift", "clean"), ("block_grid", "rows")])
def test_a_model_that_computes_otherwise_shares_nothing(name: str, value: Any) -> None:
    models = [summing(False).parts.denoiser for _ in range(3)]
    setattr(models[2], name, value)
    same, too, other = (sharing.Sharing(model, StateStore(), DecodeConfig())._root(BLOCK) for model in models)
    assert same == too != other


def test_models_whose_numbers_depend_on_company_and_states_that_cannot_be_cut_share_nothing(subject: Subject) -> None:
    assert engine(subject).sharing.on and not engine(subject, cache=False).sharing.on
    assert not sharing.Sharing(StandIn(exact=False), StateStore(), DecodeConfig()).on
    sums = engine(summing(True))
    assert cached(sums, prompt(4 * BLOCK)) == cached(sums, prompt(4 * BLOCK)) == 0 and sums.sharing.tree.bytes == 0


def test_a_second_turn_takes_the_first_turns_reply(subject: Subject) -> None:
    made, question = engine(subject), prompt(2 * BLOCK + 3, 8)
    asked = request(question, 3 * BLOCK, "editing")
    said = made.generate(asked).token_ids
    turn = (*question, *said, *prompt(5, 9))
    # no forward had the reply's last block final on entry
    assert cached(made, turn) == (len(question) + len(said) - 1) // BLOCK * BLOCK
    wanted = decoded(subject, request(turn, 12, "editing"), prefix_bytes=0)
    assert checks.answer(made.generate(request(turn, 12, "editing"))) == checks.answer(wanted)


def test_samples_of_one_prompt_prefill_it_once(subject: Subject) -> None:
    ids = prompt(9 * BLOCK, 4)
    asked = [request(ids, 5, "static_quota", "sampled", sample=index) for index in range(3)]
    wanted = [checks.answer(decoded(subject, one, prefix_bytes=0)) for one in asked]
    for settings in ({}, {"step_tokens": 4 * BLOCK}):
        found = Driver(engine(subject, **settings)).run(asked)
        assert [checks.answer(one) for one in found] == wanted
        assert [one.metrics.cached_tokens for one in found] == [0, 9 * BLOCK, 9 * BLOCK]


class Spelled(Letters):
    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [LETTERS.find(letter) % len(LETTERS) for letter in text]}


def test_gaps_are_filled_with_the_same_text(subject: Subject) -> None:
    subject.parts.tokenizer, subject.parts.meta = (
        Spelled(),
        subject.parts.meta.model_copy(update={"document_start": []}),
    )
    text = "".join(LETTERS[token] for token in (*HEADS[0], *BODY))
    asked = [
        Request.of(prompt=f"{text[:cut]}<gap:5>{text[cut:]}", infill=True, policy={"type": "static_quota", "steps": 3})
        for cut in (20, 27, 20)
    ]
    made = engine(subject)
    found = [made.generate(one) for one in asked]
    assert [checks.answer(one) for one in found] == [
        checks.answer(decoded(subject, one, prefix_bytes=0)) for one in asked
    ]
    assert [one.metrics.cached_tokens for one in found] == [0, 2 * BLOCK, 2 * BLOCK]


@pytest.mark.parametrize("pieces", [1, BLOCK, 3 * BLOCK])
def test_a_long_prompt_is_prefilled_in_pieces_between_the_steps_of_others(subject: Subject, pieces: int) -> None:
    short, long = request(prompt(BLOCK), 30, "static_quota", block=BLOCK), request(prompt(20 * BLOCK), 6, "editing")
    wanted = [checks.answer(decoded(subject, one)) for one in (short, long)]
    made, results = engine(subject, prefill_tokens=pieces, step_tokens=16 * BLOCK), dict[int, Any]()
    numbers = [made.submit(short)]
    made.step()
    numbers.append(made.submit(long))
    first, second = made.running[0], made.waiting[0]
    stalled, alone = 0, list[int]()
    while made.pending:
        steps, held = first.counters.forwards, second.canvas.committed
        for event in made.step():
            if event.kind == "done":
                results[event.request] = checks.answer(event.result)
        grown, busy = second.canvas.committed - held, first.finish is None
        stalled = 0 if first.counters.forwards > steps or not busy else stalled + 1
        assert stalled <= 1, "a stream waited for two forwards of somebody else's prompt"
        if first.counters.forwards == steps and busy:
            assert grown <= max(BLOCK, pieces)
        alone += [grown] if not busy else []
    assert [results[number] for number in numbers] == wanted
    assert pieces > 1 or max(alone) > 2 * BLOCK


def test_a_prompt_that_is_prefilled_at_once_is_noticed(subject: Subject, monkeypatch: Any) -> None:
    within = BlockEngine._within_budget
    monkeypatch.setattr(BlockEngine, "_within_budget", lambda self, filling, room: within(self, filling, 1 << 20))
    with pytest.raises(AssertionError):
        test_a_long_prompt_is_prefilled_in_pieces_between_the_steps_of_others(subject, BLOCK)
