# What thresholds, budgets and ends of text promise, as functions that raise AssertionError where a promise is broken.
# Entry points: every function; the tests run them as they are and with an error planted in the engine.
# Prompts and lengths fill whole blocks where forwards are counted.
"""Checks of thresholds, edit budgets and ends of text."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from decoding.oracle import finished, mask
from decoding.reference import MASK
from decoding.subjects import BLOCK, JOINT, LETTERS, POLICIES, Letters, Subject, decoded, engine, prompt, request
from torch import Tensor

from hildanext.decoding.driver import Driver
from hildanext.decoding.events import Commit, Done
from hildanext.decoding.request import Request, Result

NEW = 3 * BLOCK - 4


def joint(subject: Subject, tau_mask: float, tau_edit: float | None, **fields: Any) -> Result:
    """A greedy trace of 4 prompt and 20 new tokens, three blocks, under the joint threshold."""
    policy = {**JOINT, "tau_mask": tau_mask, "tau_edit": tau_edit, **fields}
    return decoded(
        subject, Request.of(prompt_ids=prompt(4, 5), max_new_tokens=NEW, policy=policy, ignore_eos=True, trace=True)
    )


def limits_of_tau_mask_give_exact_forwards(subject: Subject) -> None:
    """tau_mask 1: one token per forward; 0: one block per forward."""
    slow, quick = joint(subject, 1.0, None), joint(subject, 0.0, None)
    assert slow.metrics.forwards == slow.metrics.steps == NEW
    assert quick.metrics.forwards == quick.metrics.steps == 3


def tau_mask_one_is_the_static_quota(subject: Subject) -> None:
    """tau_mask 1 fills the same position with the same token at every step as a quota of one mask per forward."""
    policy = {"type": "static_quota", "steps": BLOCK}
    asked = Request.of(prompt_ids=prompt(8, 3), max_new_tokens=2 * BLOCK, ignore_eos=True, trace=True, policy=policy)
    limit = asked.model_copy(update={"policy": request((1,), 1, "no editing", tau_mask=1.0).policy, "tau_mask": 1.0})
    assert decoded(subject, limit).trace == decoded(subject, asked).trace


def tau_edit_one_only_looks(subject: Subject) -> None:
    """tau_edit 1: the text without editing, one forward more per block."""
    plain, looked = joint(subject, 0.1, None), joint(subject, 0.1, 1.0)
    assert looked.token_ids == plain.token_ids and sum(looked.metrics.edits_applied) == 0
    assert looked.metrics.forwards == plain.metrics.forwards + 3


def without_post_steps_editing_is_free(subject: Subject) -> None:
    """max_post_steps 0: at both limits of tau_mask editing costs no forward, and edits still happen."""
    for tau_mask, forwards in ((1.0, NEW), (0.0, 3)):
        plain = joint(subject, tau_mask, None)
        edited = joint(subject, tau_mask, 0.0, max_post_steps=0)
        assert edited.metrics.forwards == plain.metrics.forwards == forwards
        assert (sum(edited.metrics.edits_applied) > 0) == (tau_mask == 1.0)


def free_editing_ends_at_a_fixed_point_or_its_budget(subject: Subject) -> None:
    """tau_edit 0: a block whose budget is left over holds the model's own prediction everywhere; none is exceeded."""
    settled = 0
    for budget in (2, 16):
        result = joint(subject, 0.15, 0.0, max_post_steps=budget)
        given = list(prompt(4, 5))
        text = torch.tensor([given + list(result.token_ids)])
        with torch.no_grad():
            logits = subject.model(input_ids=text, attention_mask=mask(text.shape[1], BLOCK)).logits[0]
        logits[:, MASK] = -torch.inf
        for start in range(0, text.shape[1], BLOCK):
            left = [
                sum(one["state"] == "mask" for one in step["tokens"]) for step in result.trace if step["start"] == start
            ]
            rounds = len(left) - 1 - left.index(0)
            assert rounds <= budget
            if rounds < budget:
                own = range(max(4, start), start + BLOCK)
                assert [int(logits[i].argmax()) for i in own] == text[0, own.start : own.stop].tolist()
                settled += 1
    assert settled


def prompts_are_never_edited(subject: Subject) -> None:
    """Free editing leaves every given token as it was, at every offset of the prompt in its block."""
    for length in range(1, BLOCK + 1):
        made = engine(subject)
        made.submit(request(prompt(length, 5), 9, "edit freely"))
        live = made.waiting[0]
        while made.pending:
            made.step()
        assert tuple(live.canvas.tokens[:length].tolist()) == prompt(length, 5)


class Pushed:
    """A denoiser whose most likely token is [MASK] everywhere."""

    def __init__(self, denoiser: Any) -> None:
        self.denoiser = denoiser

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def __call__(self, *args: Any, **named: Any) -> Tensor:
        """The denoiser's logits with 50 more at [MASK]."""
        logits: Tensor = self.denoiser(*args, **named)
        logits[..., MASK] = logits.max() + 50
        return logits


def a_model_that_prefers_the_mask_decodes_as_if_it_did_not(subject: Subject) -> None:
    """[MASK] is out before anything is read: every policy ends, never emits it, and gives the same tokens."""
    parts = SimpleNamespace(**{**vars(subject.parts), "denoiser": Pushed(subject.parts.denoiser)})
    for number, policy in enumerate(POLICIES):
        asked = request(prompt(5, number), 11, policy, ("greedy", "sampled", "nucleus")[number % 3])
        found = decoded(replace(subject, parts=parts), asked)
        assert MASK not in found.token_ids and len(found.token_ids) == 11
        assert found.token_ids == decoded(subject, asked).token_ids, policy


def zero_credit_is_the_plain_threshold(subject: Subject) -> None:
    """credit with weight 0 is threshold decoding without editing."""
    plain = request(prompt(6, 1), 21, "no editing")
    credit = request(prompt(6, 1), 21, "credit", overrides={"alpha": 0.0})
    assert decoded(subject, credit).metrics.mask_share == decoded(subject, plain).metrics.mask_share
    assert decoded(subject, credit).token_ids == decoded(subject, plain).token_ids


def text_ends_where_it_must(subject: Subject) -> None:
    """The first end token is kept and nothing after it; nothing of a stop string or after it; the length asked for; in
    the result, and in what was emitted before it."""
    source, reasons = random.Random(4), set()
    for _ in range(24):
        ends = tuple(source.sample(range(MASK), 3))
        subject = replace(subject, parts=SimpleNamespace(**{**vars(subject.parts), "tokenizer": Letters(ends)}))
        subject.parts.denoiser.model.generation_config.eos_token_id = list(ends)
        subject.parts.denoiser.config.eos_token_id = ends[0]
        asked = request(
            prompt(source.randrange(1, 12), 7),
            source.randrange(1, 30),
            "no editing",
            "sampled",
            seed=source.randrange(99),
        )
        whole = decoded(subject, asked).token_ids
        assert len(whole) == asked.max_new_tokens
        text = "".join(LETTERS[token] for token in whole)
        place = source.randrange(len(text))
        stops = source.choice([(), (text[place : place + 2],), ("?",)])
        tokens, reason = finished(whole, ends, stops, LETTERS)
        events = list(Driver(engine(subject)).stream(asked.model_copy(update={"ignore_eos": False, "stop": stops})))
        commits = [event for event in events if isinstance(event, Commit)]
        result = next(event.result for event in events if isinstance(event, Done))
        assert (list(result.token_ids), result.finish_reason) == (tokens, reason)
        assert result.text == "".join(LETTERS[token] for token in tokens if token not in ends)
        assert "".join(event.text for event in commits) == result.text
        assert [token for event in commits for token in event.token_ids] == tokens
        assert result.metrics.tokens == len(tokens)
        reasons.add(reason)
    assert reasons == {"eos", "stop", "length"}
