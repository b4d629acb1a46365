# A second decoder, slow and independent: no cache, no batch, no engine, no tensor code of the package; lists and loops.
# Entry points: Ask (what is decoded and how), decode (the token ids), finished (end tokens and stop strings); lanes and
# seen, from which oracle_windows makes windows of several blocks.
# The model is run in full over everything visible, once per step and lane; its mask is written entry by entry.
# Probabilities are Python floats; the policies are in oracle_rules.
"""Independent oracle of block decoding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from decoding.oracle_rules import RULES, SAMPLE, Key, Moment, Seen
from torch import Tensor

Votes = dict[int, tuple[int, float]]


@dataclass(frozen=True)
class Ask:
    """One request. policy: its type and every field; editing applies to threshold_edit only."""

    prompt: tuple[int, ...]
    new: int
    block: int
    mask_id: int
    policy: dict[str, Any]
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    cfg_scale: float = 0.0
    confidence: str = "raw"
    key: Key = Key(0, 0)


def decode(model: Any, ask: Ask) -> list[int]:
    """The `new` tokens that follow the prompt."""
    given = len(ask.prompt)
    x = list(ask.prompt) + [ask.mask_id] * (-(-(given + ask.new) // ask.block) * ask.block - given)
    for start in range(given // ask.block * ask.block, len(x), ask.block):
        _fill_block(model, ask, x, start)
    return x[given : given + ask.new]


def _fill_block(model: Any, ask: Ask, x: list[int], start: int) -> None:
    places = [i for i in range(start, start + ask.block) if i >= len(ask.prompt)]
    now = Moment(ask.policy, ask.key, x, places, sum(x[i] == ask.mask_id for i in places))
    history: list[Votes] = []
    editing, rounds = ask.policy.get("tau_edit") is not None, 0
    while True:
        now.hidden = [i for i in places if x[i] == ask.mask_id]
        rounds += not now.hidden
        if not now.hidden and (not editing or rounds > ask.policy["max_post_steps"]):
            return
        hidden = [ask.mask_id] * len(ask.prompt) + x[len(ask.prompt) :]
        now.seen = seen(ask, now, history, lanes(model, ask, x[: start + ask.block], hidden[: start + ask.block]))
        fill, edit, back = RULES[ask.policy["type"]](now)
        history.append({i: (now.seen[i].token, now.seen[i].p) for i in now.hidden})
        for i in fill + edit:
            x[i] = now.seen[i].token
        for i in back:
            x[i] = ask.mask_id
        now.step += 1
        if not now.hidden and not edit:
            return


def lanes(model: Any, ask: Ask, x: list[int], hidden: list[int]) -> list[list[float]]:
    """The logits of every position of x; `hidden` is x with its given tokens masked, for guidance."""
    rows = _logits(model, x, ask.block)
    if ask.cfg_scale:
        pairs = zip(rows, _logits(model, hidden, ask.block), strict=True)
        rows = [[u + (ask.cfg_scale + 1) * (c - u) for c, u in zip(*pair, strict=True)] for pair in pairs]
    return rows


def seen(ask: Ask, now: Moment, history: list[Votes], rows: list[list[float]]) -> dict[int, Seen]:
    """What the places of a block predict, from the logits of all positions."""
    found = {}
    for i in now.places:
        scores = _biased(ask, now, history, i, rows[i])
        scores[ask.mask_id] = -math.inf
        found[i] = _predicted(ask, i, now.step, scores)
    return found


def _logits(model: Any, tokens: list[int], block: int) -> list[list[float]]:
    with torch.no_grad():
        out = model(input_ids=torch.tensor([tokens]), attention_mask=mask(len(tokens), block), use_cache=False)
    rows: list[list[float]] = out.logits[0].tolist()
    return rows


@cache
def mask(size: int, block: int) -> Tensor:
    """[1, 1, L, L] float: 0 where the key's block is not later than the query's, else the lowest number."""
    low = torch.finfo(torch.float32).min
    rows = [[0.0 if key // block <= query // block else low for key in range(size)] for query in range(size)]
    return torch.tensor([[rows]])


def _biased(ask: Ask, now: Moment, history: list[Votes], i: int, row: list[float]) -> list[float]:
    scores, policy = list(row), ask.policy
    left = now.x[i - 1] if i % ask.block else ask.mask_id
    if left != ask.mask_id:
        scores[left] -= policy.get("repetition_penalty", 0.0)
    credit: dict[int, float] = {}
    for age, votes in enumerate(reversed(history)):
        if policy["type"] == "credit" and i in votes:
            token, p = votes[i]
            credit[token] = credit.get(token, 0.0) + policy["decay"] ** age * p ** policy["gamma"]
    for token, amount in credit.items():
        scores[token] += policy["alpha"] * math.log(1 + amount)
    return scores


def _predicted(ask: Ask, i: int, step: int, scores: list[float]) -> Seen:
    own, cold = _softmax(scores), ask.temperature < 1e-5
    order = sorted(range(len(own)), key=lambda v: (-scores[v], v))
    token = order[0] if cold else _drawn(_cut(ask, scores, order), ask.key.uniform(i, step, SAMPLE))
    p = own if cold or ask.confidence == "raw" else _cut(ask, scores, order)
    surprise = 0.0 if token == order[0] else -math.log(p[token])
    spread = max(-sum(q * math.log(q) for q in p if q > 0), surprise)
    return Seen(token, p[token], spread, p[token] - max(q for v, q in enumerate(p) if v != token))


def _drawn(p: list[float], level: float) -> int:
    total = 0.0
    for token, share in enumerate(p):
        total += share
        if total > level:
            return token
    return max(token for token, share in enumerate(p) if share)


def _cut(ask: Ask, scores: list[float], order: list[int]) -> list[float]:
    kept = order[: ask.top_k or None]
    heated = _softmax([score / ask.temperature if v in kept else -math.inf for v, score in enumerate(scores)])
    while len(kept) > 1 and sum(heated[v] for v in kept[:-1]) >= ask.top_p:
        kept = kept[:-1]
    return _softmax([score / ask.temperature if v in kept else -math.inf for v, score in enumerate(scores)])


def _softmax(scores: list[float]) -> list[float]:
    most = max(scores)
    weights = [math.exp(score - most) for score in scores]
    total = sum(weights)
    return [weight / total for weight in weights]


def finished(tokens: Sequence[int], ends: Sequence[int], stops: Sequence[str], letters: str) -> tuple[list[int], str]:
    """What is left of `tokens`, each one letter of text, up to the first end token (kept) or stop string (dropped), and
    why it ended."""
    first = next((n for n, token in enumerate(tokens) if token in ends), None)
    kept = list(tokens) if first is None else list(tokens[: first + 1])
    text = "".join(letters[token] for token in kept if token not in ends)
    place = min((text.index(stop) for stop in stops if stop in text), default=None)
    if place is not None:
        return kept[:place], "stop"
    return kept, "length" if first is None else "eos"
