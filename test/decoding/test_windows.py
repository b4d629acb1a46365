# Windows of several blocks: the engine's tokens are an independent decoder's, and its cache is as exact as with one.
# Entry points: the tests; what they check is in checks, the slow decoder in oracle_windows.
# Rows of a forward are then final blocks and several open ones, of which each sees those before it as they are.
"""Several opened blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from decoding import checks, oracle_windows, plants, plants_windows
from decoding.oracle import finished
from decoding.reference import MASK, scripted
from decoding.subjects import (
    BLOCK,
    LETTERS,
    POLICIES,
    WINDOWS,
    Letters,
    Subject,
    ask_of,
    decoded,
    engine,
    expected,
    expected_in_window,
    opened,
    prompt,
    request,
)  # fmt: skip
from decoding.sums import summing

from hildanext.config.decode import DecodeConfig
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.events import Commit, Done, Draft
from hildanext.decoding.forward import ForwardRow, visibility
from hildanext.decoding.request import Request

ORACLE = [
    ("no editing", "greedy", 2), ("editing", "greedy", 3), ("edit freely", "guided sampled", 4),
    ("editing", "sampled", 2), ("no editing", "nucleus", 3), ("penalised", "guided", 4), ("static_quota", "sampled", 4),
    ("random_topk", "greedy", 2), ("margin", "guided", 3), ("entropy_bound", "greedy", 4), ("factor", "sampled", 2),
    ("hierarchy", "greedy", 3), ("credit", "greedy", 4), ("remask", "sampled", 3), ("random", "greedy", 2),
    ("no last look", "greedy", 4),
]  # fmt: skip
CACHING = [
    ("no editing", "greedy", 2), ("editing", "sampled", 3), ("edit freely", "guided sampled", 4),
    ("remask", "greedy", 2), ("credit", "greedy", 3),
]  # fmt: skip


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def subject(request: Any, random_model: Any) -> Subject:
    return opened(random_model, request.param)


@pytest.mark.parametrize(("policy", "sampling", "blocks"), ORACLE)
def test_tokens_are_those_of_an_independent_decoder(subject: Subject, policy: str, sampling: str, blocks: int) -> None:
    length = (3, BLOCK, 2 * BLOCK + 1)[ORACLE.index((policy, sampling, blocks)) % 3]
    checks.windows_are_the_oracles(subject, policy, sampling, blocks, (length,))


@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_nothing_is_opened_behind_an_end_token_and_the_text_ends_at_the_first(subject: Subject, blocks: int) -> None:
    ends = tuple({*range(0, MASK, 5), *subject.parts.denoiser.end_ids})
    ending = Subject(replace_tokenizer(subject, Letters(ends)), subject.model)
    reasons = set()
    for length in (3, BLOCK + 2, 17):
        asked = request(prompt(length, 7), 4 * BLOCK, "editing", ignore_eos=False, **WINDOWS[blocks])
        found = decoded(ending, asked)
        wanted, reason = finished(expected_in_window(subject, asked, ends), ends, (), LETTERS)
        assert (list(found.token_ids), found.finish_reason) == (wanted, reason)
        reasons.add(reason)
    assert "eos" in reasons


def replace_tokenizer(subject: Subject, tokenizer: Any) -> Any:
    return type(subject.parts)(**{**vars(subject.parts), "tokenizer": tokenizer})


class Spelling(Letters):
    """Letters that also reads a text."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [LETTERS.index(letter) for letter in text if letter in LETTERS]}


@pytest.mark.parametrize(("sampling", "blocks"), [("greedy", 2), ("guided sampled", 3)])
def test_gaps_are_filled_as_the_independent_decoder_fills_them(subject: Subject, sampling: str, blocks: int) -> None:
    text, sizes = ("abc", "defghijklmnopqrstuvwxyz", "A"), (11, 14)
    asked = request((1,), 1, "editing", sampling, **WINDOWS[blocks])
    changes = {"prompt_ids": None, "max_new_tokens": None, "infill": True, "ignore_eos": False}
    gapped = asked.model_copy(update={**changes, "prompt": f"{text[0]}<gap:11>{text[1]}<gap:14>{text[2]}"})
    read = Spelling()
    canvas = read(text[0])["input_ids"]
    for size, own in zip(sizes, text[1:], strict=True):
        canvas += [MASK] * size + read(own)["input_ids"]
    editable = {i for i, token in enumerate(canvas) if token == MASK}
    shares = {name[4:]: value for name, value in WINDOWS[blocks].items() if name != "window_blocks"}
    window = oracle_windows.Window(blocks, **shares)
    wanted = oracle_windows.decode(subject.model, ask_of(asked), window, canvas, editable)
    assert decoded(Subject(replace_tokenizer(subject, read), None), gapped).token_ids == tuple(wanted)


@pytest.mark.parametrize(("policy", "sampling", "blocks"), CACHING)
@pytest.mark.parametrize("kind", ["qwen3", "sums"])
def test_every_way_of_caching_gives_the_same_tokens(
    random_model: Any, kind: str, policy: str, sampling: str, blocks: int
) -> None:
    subject = summing(True) if kind == "sums" else opened(random_model, kind)
    checks.every_way_of_caching_agrees(subject, policy, sampling, (2 * BLOCK + 3,), **WINDOWS[blocks])


@pytest.mark.parametrize(("seed", "preempt", "settings"), [(1, 0.0, {}), (4, 0.0, {"fuse": False}), (10, 0.3, {})])
def test_company_of_other_windows_and_preemption_change_nothing(
    subject: Subject, seed: int, preempt: float, settings: dict[str, Any]
) -> None:
    checks.company_changes_nothing(subject, seed, preempt, windows=(2, 1, 3, 4), **settings)


@pytest.mark.parametrize(("policy", "sampling", "blocks"), CACHING[:4])
def test_committed_keys_are_those_of_one_forward(subject: Subject, policy: str, sampling: str, blocks: int) -> None:
    checks.committed_keys_are_those_of_one_forward(subject, policy, sampling, **WINDOWS[blocks])


def test_a_request_preempted_in_the_middle_of_three_blocks_resumes_with_the_same_text(subject: Subject) -> None:
    asked = request(prompt(11), 4 * BLOCK, "editing", "sampled", **(WINDOWS[4] | {"window_blocks": 3}))
    made, wanted, moments = engine(subject), decoded(subject, asked), 0
    number = made.submit(asked)
    while made.pending:
        for event in made.step():
            found = event.result if isinstance(event, Done) else None
        opened_now = made.running[0].canvas.opened if made.running else ()
        if len(opened_now) == 3 and moments < 2:
            moments += 1
            made.preempt(number)
    assert moments == 2 and found is not None
    assert (found.token_ids, found.metrics.edits_applied) == (wanted.token_ids, wanted.metrics.edits_applied)


@pytest.mark.parametrize(
    ("policy", "sampling"), [("no editing", "greedy"), ("editing", "sampled"), ("remask", "greedy")]
)
def test_one_block_or_a_share_no_block_reaches_is_decoding_without_windows(
    subject: Subject, policy: str, sampling: str
) -> None:
    plain = request(prompt(11), 3 * BLOCK, policy, sampling)
    alone = decoded(subject, plain)
    assert list(alone.token_ids) == expected(subject, plain)
    for fields in (WINDOWS[1], {"window_blocks": 4, "tau_add": 1.01}):
        found = decoded(subject, plain.model_copy(update=fields))
        assert (found.token_ids, found.metrics.mask_share) == (alone.token_ids, alone.metrics.mask_share)
        assert (found.metrics.forwards, found.metrics.positions) == (alone.metrics.forwards, alone.metrics.positions)


def test_padding_behind_a_window_changes_nothing(subject: Subject) -> None:
    tokens = torch.tensor([*prompt(2 * BLOCK), *[MASK] * 3 * BLOCK])
    select = torch.arange(len(tokens)) < 3 * BLOCK
    denoiser, found = subject.parts.denoiser, []
    for width in (3 * BLOCK, 5 * BLOCK):
        row = ForwardRow(0, 0, tokens[: 3 * BLOCK], select[: 3 * BLOCK], BLOCK)
        positions = torch.arange(width)[None]
        with torch.no_grad():
            seen = visibility([row], positions, width)
            assert not bool(seen[0, 0, :, 3 * BLOCK :].any())
            found.append(denoiser(tokens[None, :width], positions, seen, select=select[None, :width]))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_a_draft_carries_every_open_block_and_text_is_committed_in_order(subject: Subject) -> None:
    asked = request(prompt(BLOCK), 3 * BLOCK + 3, "editing", trace=True, **WINDOWS[4])
    events = list(Driver(engine(subject)).stream(asked))
    drafts = [event for event in events if isinstance(event, Draft)]
    assert [len(draft.tokens) for draft in drafts[:4]] == [BLOCK, 2 * BLOCK, 3 * BLOCK, 4 * BLOCK]
    done = 0
    for event in events:
        if isinstance(event, Draft):
            places = [token.pos for token in event.tokens]
            assert (
                places == list(range(places[0], places[0] + len(places))) and places[0] >= BLOCK + done // BLOCK * BLOCK
            )
        elif isinstance(event, Commit):
            done += len(event.token_ids)
    assert isinstance(events[-1], Done) and events[-1].result.finish_reason == "length"
    committed = [token for event in events if isinstance(event, Commit) for token in event.token_ids]
    assert tuple(committed) == events[-1].result.token_ids and len(committed) == 3 * BLOCK + 3
    assert len(drafts) == events[-1].result.metrics.steps == len(events[-1].result.trace)


def test_several_blocks_take_fewer_forwards_and_wider_ones(subject: Subject) -> None:
    found = [
        decoded(
            subject, request(prompt(BLOCK), 4 * BLOCK, "static_quota", **(WINDOWS[4] | {"window_blocks": n}))
        ).metrics
        for n in (1, 2, 4)
    ]
    forwards, widths = [one.forwards for one in found], [one.positions_per_forward for one in found]
    assert forwards == sorted(forwards, reverse=True) and len(set(forwards)) == 3
    assert widths == sorted(widths, key=float)
    assert all(one.tokens_per_forward == 4 * BLOCK / one.forwards for one in found)


SMALL, END = 4, 18


def drafts_of(rule: Callable[[list[int], list[int], int], dict[int, float]], **fields: Any) -> tuple[list[Any], Any]:
    """What each step of a scripted model of 20 tokens (19: [MASK]) shows, for blocks of 4 behind a prompt of 4."""
    made = scripted(rule)
    made.denoiser.end_ids = frozenset({END})
    events = list(
        Driver(BlockEngine(made, DecodeConfig(block=SMALL))).stream(Request.of(prompt_ids=(1, 2, 3, 4), **fields))
    )
    assert isinstance(events[-1], Done)
    return [event.tokens for event in events if isinstance(event, Draft)], events[-1].result


def test_an_end_token_that_an_edit_takes_back_holds_the_window_only_while_it_stands() -> None:
    def rule(tokens: list[int], positions: list[int], index: int) -> dict[int, float]:
        place = dict(zip(positions, tokens, strict=True))
        if positions[index] == 9:
            return {END if place.get(7, 0) == 19 else 5: 0.9}
        return {6: 0.4 if positions[index] < 8 else 0.9}

    fields = {"tau_mask": 0.5, "tau_edit": 0.5, "max_new_tokens": 12, "window_blocks": 3, "tau_add": 0.25}
    shown, result = drafts_of(rule, **fields)
    held = [draft for draft in shown if any(token.id == END for token in draft)]
    assert held and all(draft[-1].pos < 12 for draft in held)
    assert any(draft[-1].pos == 15 and draft[0].pos < 12 for draft in shown)
    assert result.token_ids == (6, 6, 6, 6, 6, 5, *[6] * 6) and result.finish_reason == "length"


def test_a_block_that_waits_uses_none_of_its_looks_and_is_not_made_to_fill() -> None:
    def rule(tokens: list[int], positions: list[int], index: int) -> dict[int, float]:
        return {6: 0.4}

    fields = {"tau_mask": 0.5, "tau_edit": None, "max_new_tokens": 12, "window_blocks": 3}
    shown, result = drafts_of(rule, **fields, tau_add=0.0, tau_semi=1.0)
    left = [sum(token.state == "mask" for token in draft if token.pos < 8) for draft in shown[:4]]
    assert left == [3, 2, 1, 0] and len(shown) == result.metrics.forwards == 12
    early, _ = drafts_of(rule, **fields, tau_add=0.0, tau_semi=0.5)
    assert len(early) < 12


def _keys(subject: Subject) -> None:
    checks.committed_keys_are_those_of_one_forward(subject, "no editing", "greedy", **WINDOWS[2])


def _oracle(policy: str, sampling: str, blocks: int) -> Callable[[Subject], None]:
    return lambda subject: checks.windows_are_the_oracles(subject, policy, sampling, blocks)


def _ends(_: Subject) -> None:
    test_an_end_token_that_an_edit_takes_back_holds_the_window_only_while_it_stands()


def _last_looks(subject: Subject) -> None:
    quick = POLICIES["no last look"] | {"tau_mask": 0.07}
    for length in (3, BLOCK):
        fields = {"prompt_ids": prompt(length), "max_new_tokens": 4 * BLOCK, "ignore_eos": True, "policy": quick}
        asked = Request.of(**fields, **WINDOWS[4])
        assert list(decoded(subject, asked).token_ids) == expected_in_window(subject, asked)


def test_a_block_filled_beside_an_unfinished_one_is_looked_at_behind_the_finished_one(subject: Subject) -> None:
    _last_looks(subject)


FAULTS = (
    (plants.keys_of_the_changing_forward, _keys),
    (plants_windows.readiness_behind_the_writes, _oracle("static_quota", "greedy", 2)),
    (plants_windows.every_block_made_to_fill, _oracle("static_quota", "greedy", 2)),
    (plants_windows.a_window_seen_as_one_block, _oracle("no editing", "greedy", 2)),
    (plants_windows.randomness_of_the_first_block, _oracle("editing", "sampled", 2)),
    (plants_windows.no_look_behind_the_finished_block, _last_looks),
    (plants_windows.end_tokens_that_open, _ends),
)


@pytest.mark.parametrize(("plant", "check"), FAULTS)
def test_a_planted_error_is_noticed(random_model: Any, monkeypatch: Any, plant: Any, check: Any) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        check(opened(random_model, "llama"))
