# Carry-over: its formulas by hand, the engine against a slow decoder without cache, and what may not change.
# Entry points: the tests. The slow decoder mixes dense embeddings, one position at a time, in a model of its own.
# A carry of nothing is the plain engine to the bit; a carry of one token is feeding that token.
"""Carry between the forwards of a block."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from decoding import checks, oracle
from decoding.reference import MASK, scripted
from decoding.subjects import BLOCK, Subject, decoded, engine, opened, prompt, request
from torch import Tensor

from hildanext.config.decode import DecodeConfig
from hildanext.core.carries.iter_smooth import IterSmooth
from hildanext.core.carries.rcd import Rcd
from hildanext.core.carries.soft import Soft
from hildanext.core.carry import Carried, Carry, Likely, likely
from hildanext.core.mixture import Mixture, MixtureHook, mixed
from hildanext.decoding import carrying, state
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.request import Request
from hildanext.errors import DecodeError

DENSE = {"top_k": 66}
WHOLE = {"rcd": {"type": "rcd", **DENSE}, "iter_smooth": {"type": "iter_smooth", **DENSE}, "soft": {"type": "soft"}}


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def subject(request: Any, random_model: Any) -> Subject:
    return opened(random_model, request.param)


class Nothing(Carry):
    """[MASK] stays what it is."""

    def carried(self, found: Likely, step: int) -> Carried:
        return Carried(found.ids, torch.zeros_like(found.probability), torch.ones_like(found.spread))


def input_of(name: str, matrix: Tensor, p: Tensor, step: int) -> Tensor:
    """The next input of a masked position, from its whole distribution p [V], by the papers' formulas."""
    mean = torch.zeros(matrix.shape[1])
    for token, share in enumerate(p.tolist()):
        mean = mean + share * matrix[token]
    if name == "rcd":
        a = -sum(q * math.log(q) for q in p.tolist() if q > 0) / math.log(len(p) - 1)
        return (1 - a) * matrix[MASK] + a * mean
    return matrix[MASK] + min(0.3, 0.15 + 0.02 * step) * mean if name == "iter_smooth" else matrix[MASK]


def slow(subject: Subject, name: str, ids: tuple[int, ...], new: int, tau: float) -> dict[int, tuple[int, float]]:
    """Threshold decoding without editing, {position: (token, its probability)}: everything visible is run again at
    every step, masks and `soft` tokens as mixtures."""
    made: dict[int, tuple[int, float]] = {}
    matrix, x = subject.model.get_input_embeddings().weight.detach(), list(ids)
    length = -(-(len(ids) + new) // BLOCK) * BLOCK
    x += [MASK] * (length - len(ids))
    for start in range(len(ids) // BLOCK * BLOCK, length, BLOCK):
        inputs: dict[int, Tensor] = {}
        for step in range(BLOCK + 1):
            hidden = [i for i in range(start, start + BLOCK) if x[i] == MASK]
            if not hidden:
                break
            embedded = torch.stack([inputs.get(i, matrix[x[i]]) for i in range(start + BLOCK)])
            with torch.no_grad():
                out = subject.model(
                    inputs_embeds=embedded[None], attention_mask=oracle.mask(start + BLOCK, BLOCK), use_cache=False
                )
            scores = out.logits[0].clone()
            scores[:, MASK] = -math.inf
            p = scores.softmax(dim=1)
            sure = {i: float(p[i].max()) for i in hidden}
            chosen = [i for i in hidden if sure[i] > tau] or [max(hidden, key=lambda i: (sure[i], -i))]
            for i in chosen:
                x[i] = int(p[i].argmax())
                made[i] = (x[i], sure[i])
                if name == "soft":
                    own, mask = matrix[x[i]], matrix[MASK]
                    blend = sure[i] * own + (1 - sure[i]) * mask
                    inputs[i] = blend * (sure[i] * own.norm() + (1 - sure[i]) * mask.norm()) / blend.norm()
            inputs = {i: one for i, one in inputs.items() if x[i] != MASK} if name == "soft" else {}
            if name != "soft":
                inputs = {i: input_of(name, matrix, p[i], step) for i in hidden if x[i] == MASK}
    return made


@pytest.mark.parametrize("name", WHOLE)
def test_tokens_and_probabilities_are_those_of_a_slow_decoder_that_mixes_dense_embeddings(
    subject: Subject, name: str
) -> None:
    for length in (3, BLOCK):
        wanted = slow(subject, name, prompt(length, 2), 19, 0.15)
        trace = decoded(subject, request(prompt(length, 2), 19, "no editing", carry=WHOLE[name], trace=True)).trace
        found = {
            one["pos"]: (one["id"], one["confidence"])
            for step in trace
            for one in step["tokens"]
            if one["state"] == "new"
        }
        assert found.keys() == wanted.keys()
        for place, (token, sure) in wanted.items():
            assert found[place] == (token, pytest.approx(sure, abs=1e-5)), place


def test_a_carry_of_nothing_changes_nothing_at_all(subject: Subject) -> None:
    for policy, sampling in (("no editing", "greedy"), ("editing", "sampled"), ("remask", "guided")):
        asked = request(prompt(5), 14, policy, sampling)
        plain, none = decoded(subject, asked), decoded(subject, asked.model_copy(update={"carry": Nothing()}))
        assert none.token_ids == plain.token_ids and none.metrics.mask_share == plain.metrics.mask_share


def test_a_mixture_of_one_token_is_that_token_and_of_mask_alone_is_mask_to_the_bit(subject: Subject) -> None:
    tokens, denoiser = torch.tensor([prompt(12)]), subject.parts.denoiser
    hidden, where = tokens.clone(), torch.tensor([2, 7, 11])
    hidden[0, where] = MASK
    mask, positions = torch.ones(1, 1, 12, 12, dtype=torch.bool), torch.arange(12)[None]
    for target, share in ((tokens, 1.0), (hidden, 0.0)):
        ids = torch.stack([torch.full((3,), 5), tokens[0, where]], dim=1)
        what = Carried(ids, torch.tensor([[0.0, share]]).repeat(3, 1), torch.full((3,), 1 - share))
        for norms in (False, True):
            with torch.no_grad(), denoiser.mixing(what.mixture(MASK, torch.zeros(3).long(), where, norms)):
                found = denoiser(hidden, positions, mask)
            with torch.no_grad():
                assert torch.equal(found, denoiser(target, positions, mask))


def test_weights_by_hand() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, 9.0], [0.0, 0.0, 0.0, 9.0]])
    p = [math.exp(s) / (math.exp(2) + math.exp(1) + 1) for s in (2, 1, 0)]
    found = likely(scores, 3, 2)
    assert found.ids[0].tolist() == [0, 1] and found.probability[0].tolist() == pytest.approx(p[:2])
    a = -sum(q * math.log(q) for q in p) / math.log(3)
    assert found.spread.tolist() == pytest.approx([a, 1.0])
    assert likely(scores, 3, 2, 0.5).spread[0] < found.spread[0]
    made = Rcd().carried(found, 0)
    assert made.weights[0].tolist() == pytest.approx([a * q / (p[0] + p[1]) for q in p[:2]])
    assert made.mask_weight.tolist() == pytest.approx([1 - a, 0.0])
    late = IterSmooth().carried(found, 20)
    assert float(late.weights[0].sum()) == pytest.approx(0.3) and late.mask_weight.tolist() == [1.0, 1.0]
    soft = Soft(masked_share=0.5).carried(found, 0)
    assert soft.mask_weight[0] == pytest.approx(1 - 0.5 * (p[0] + p[1]))
    held = Soft().held(torch.tensor([2]), torch.tensor([0.25]))
    assert (held.ids.tolist(), held.weights.tolist(), held.mask_weight.tolist()) == ([[2]], [[0.25]], [0.75])


def test_norms_are_kept() -> None:
    matrix = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    parts = torch.tensor([[1, 3]]), torch.tensor([[0.3, 0.7]])
    where = torch.zeros(1, dtype=torch.long), torch.tensor([2])
    mixture = Mixture(*where, *parts, torch.tensor([True]))
    made = mixed(torch.zeros(1, 4, 4), lambda ids: matrix[ids], mixture)[0, 2]
    wanted = 0.3 * matrix[1].norm() + 0.7 * matrix[3].norm()
    assert float(made.norm()) == pytest.approx(float(wanted))
    assert torch.allclose(
        made / made.norm(), (0.3 * matrix[1] + 0.7 * matrix[3]) / (0.3 * matrix[1] + 0.7 * matrix[3]).norm()
    )


@pytest.mark.parametrize("name", WHOLE)
def test_caching_batching_and_companions_change_nothing(subject: Subject, name: str) -> None:
    checks.every_way_of_caching_agrees(subject, "editing", "greedy", (5,), carry=WHOLE[name])
    asked = [
        request(prompt(length, 3), 17, policy, carry=carry, window_blocks=blocks, tau_add=0.3)
        for length, policy, carry, blocks in (
            (4, "editing", WHOLE[name], 1), (11, "no editing", None, 1), (8, "no editing", WHOLE["rcd"], 2),
            (2, "editing", WHOLE["soft"], 2),
        )
    ]  # fmt: skip
    together = Driver(engine(subject)).run(asked)
    assert [one.token_ids for one in together] == [decoded(subject, one).token_ids for one in asked]


def test_a_block_begins_with_nothing_carried_and_only_its_masks_carry(subject: Subject, monkeypatch: Any) -> None:
    seen: list[Mixture] = []
    enter = MixtureHook.__enter__
    monkeypatch.setattr(MixtureHook, "__enter__", lambda self: (seen.append(self.mixture), enter(self))[1])
    made = engine(subject)
    made.submit(request(prompt(BLOCK), 2 * BLOCK, "no editing", carry=WHOLE["rcd"]))
    plain = 0
    while made.pending:
        live = (made.running or list(made.waiting))[0]
        before, hidden = len(seen), live.canvas.tokens.clone()
        fresh = [block.looks == 0 for block in live.canvas.opened]
        final = live.canvas.final
        made.step()
        if fresh[0]:
            assert len(seen) == before
            plain += 1
        else:
            start = final - (seen[-1].columns.max() // BLOCK * BLOCK)
            assert (hidden[seen[-1].columns + start] == MASK).all()
    assert plain == 2 and len(seen) > 2


@pytest.mark.parametrize(("name", "blocks"), [("soft", 1), ("soft", 3)])
def test_committed_keys_are_those_of_the_hard_text(subject: Subject, name: str, blocks: int) -> None:
    fields = {"carry": WHOLE[name], "window_blocks": blocks, "tau_add": 0.3, "tau_semi": 0.3}
    checks.committed_keys_are_those_of_one_forward(subject, "edit freely", "greedy", **fields)


def test_a_planted_soft_commit_or_a_carry_that_outlives_its_block_is_seen(subject: Subject, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        made = carrying.carried_on
        patch.setattr("hildanext.decoding.step.carried_on", lambda *given: replace(made(*given), filled=False))
        with pytest.raises(AssertionError):
            test_committed_keys_are_those_of_the_hard_text(subject, "soft", 1)
    kept: list[Any] = []

    class Remembering(state.OpenBlock):
        """Begins with what the block before carried."""

        def __setattr__(self, name: str, value: Any) -> None:
            kept.extend([value] if name == "held" and value is not None else [])
            super().__setattr__(name, kept[0] if name == "held" and kept and value is None else value)

    with monkeypatch.context() as patch:
        patch.setattr(state, "OpenBlock", Remembering)
        with pytest.raises(AssertionError):
            test_tokens_and_probabilities_are_those_of_a_slow_decoder_that_mixes_dense_embeddings(subject, "rcd")


def test_a_model_without_embeddings_refuses_and_a_wrong_field_is_named() -> None:
    made = BlockEngine(scripted(lambda *_: {1: 0.9}), DecodeConfig(block=BLOCK))
    with pytest.raises(DecodeError, match="carry: this model takes tokens only"):
        made.submit(Request.of(prompt_ids=(1, 2), carry="rcd"))
    with pytest.raises(DecodeError, match="carry: 1 problem\n  strenght: unknown key, did you mean 'strength'"):
        made.submit(Request.of(prompt_ids=(1, 2), carry={"type": "rcd", "strenght": 1.0}))
    with pytest.raises(DecodeError, match="did you mean 'rcd'"):
        made.submit(Request.of(prompt_ids=(1, 2), carry="rdc"))


def test_the_result_says_what_was_carried(subject: Subject) -> None:
    preset = decoded(subject, request(prompt(5), 4, "no editing", carry="rcd")).preset
    assert preset is not None and preset["carry"] == {"type": "rcd", "top_k": 32, "temperature": 1.0, "strength": 1.0}
