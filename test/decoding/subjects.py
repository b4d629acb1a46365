# What the decoding tests decode: tiny random models of two families, policies with every field, prompts, a tokenizer.
# Entry points: Subject, opened, POLICIES, SAMPLINGS, WINDOWS, prompt, Letters, engine, decoded, ask_of, expected.
# A subject has the engine's parts and the same weights once more in a model that the package never touched.
"""Subjects of the decoding tests."""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from decoding import oracle_windows
from decoding.oracle import Ask, decode
from decoding.oracle_rules import Key
from decoding.reference import MASK, loaded

from hildanext.config.decode import WINDOW, DecodeConfig
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.request import Request, Result

BLOCK = 8
LETTERS = (string.ascii_letters + string.digits + "+-*/")[:MASK]
JOINT = {"type": "threshold_edit", "max_post_steps": 4, "minimum_transfers": 1, "repetition_penalty": 0.0}
POLICIES: dict[str, dict[str, Any]] = {
    "no editing": {**JOINT, "tau_mask": 0.15, "tau_edit": None},
    "editing": {**JOINT, "tau_mask": 0.12, "tau_edit": 0.1},
    "edit freely": {**JOINT, "tau_mask": 0.2, "tau_edit": 0.0},
    "no last look": {**JOINT, "tau_mask": 0.15, "tau_edit": 0.05, "max_post_steps": 0},
    "penalised": {**JOINT, "tau_mask": 0.12, "tau_edit": 0.1, "minimum_transfers": 2, "repetition_penalty": 1.5},
    "static_quota": {"type": "static_quota", "steps": 3},
    "random": {"type": "random", "steps": 3},
    "random_topk": {"type": "random_topk", "steps": 4, "position_temperature": 0.1},
    "margin": {"type": "margin", "steps": 5},
    "entropy_bound": {"type": "entropy_bound", "gamma": 7.0},
    "factor": {"type": "factor", "factor": 2.7},
    "hierarchy": {"type": "hierarchy", "tau_mask": 0.25, "tau_low": 0.12},
    "credit": {"type": "credit", "tau_mask": 0.15, "alpha": 1.5, "decay": 0.8, "gamma": 0.2},
    "remask": {
        "type": "remask", "tau_mask": 0.15, "target_ratio": 0.6, "minimum_ratio": 0.3, "window": 32, "stride": 1,
        "cap_percentile": 0.95,
    },
}  # fmt: skip
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "top_k": 20, "seed": 5},
    "nucleus": {"temperature": 0.8, "top_p": 0.9, "seed": 6},
    "guided": {"cfg_scale": 0.7},
    "guided sampled": {"cfg_scale": 0.4, "temperature": 0.9, "seed": 7},
}


WINDOWS: dict[int, dict[str, Any]] = {
    1: {"window_blocks": 1},
    2: {"window_blocks": 2, "tau_add": 0.1, "tau_semi": 0.9},
    3: {"window_blocks": 3, "tau_add": 0.5, "tau_semi": 0.5, "tau_stable": 0.4},
    4: {"window_blocks": 4, "tau_add": 0.0, "tau_semi": 0.0},
}


@dataclass(frozen=True)
class Subject:
    """parts: what an engine is given; model: the same weights, eager attention, never seen by the package."""

    parts: Any
    model: Any


@dataclass(frozen=True)
class Letters:
    """A tokenizer whose tokens are single letters."""

    eos_token_id: tuple[int, ...] = ()

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """One letter per id."""
        return "".join(LETTERS[token] for token in ids)


def opened(random_model: Callable[..., Any], family: str, seed: int = 1) -> Subject:
    """A subject of a family, with letters as its tokens."""
    model = random_model(family, seed=seed)
    model.set_attn_implementation("eager")
    return Subject(loaded(random_model(family, seed=seed), Letters()), model)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    """`length` token ids, none of them [MASK]."""
    source = random.Random(f"{length}-{seed}")
    return tuple(source.randrange(MASK) for _ in range(length))


def engine(subject: Subject, **settings: Any) -> BlockEngine:
    """An engine of block 8 with these settings of the decode section."""
    return BlockEngine(subject.parts, DecodeConfig(**{"block": BLOCK, **settings}))


def request(ids: tuple[int, ...], new: int, policy: str, sampling: str = "greedy", **fields: Any) -> Request:
    """A request without end tokens for a policy and a sampling of the tables."""
    named = {"policy": POLICIES[policy], "ignore_eos": True, **SAMPLINGS[sampling], **fields}
    return Request.of(prompt_ids=ids, max_new_tokens=new, **named)


def decoded(subject: Subject, asked: Request, **settings: Any) -> Result:
    """The result of one request alone in an engine."""
    return engine(subject, **settings).generate(asked)


def expected(subject: Subject, asked: Request, confidence: str = "raw") -> list[int]:
    """The tokens of a request by the independent decoder, before end tokens and stop strings."""
    ask = ask_of(asked, confidence)
    return decode(subject.model, ask)


def ask_of(asked: Request, confidence: str = "raw") -> Ask:
    """What the independent decoders are told of a request."""
    if asked.prompt_ids is None or asked.policy is None or asked.max_new_tokens is None:
        raise ValueError("expected: the request must name prompt_ids, policy and max_new_tokens")
    chosen = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "cfg_scale": 0.0, "seed": 0}
    chosen |= {name: value for name in chosen if (value := getattr(asked, name)) is not None}
    key = Key(int(chosen.pop("seed")), asked.sample)
    policy = asked.policy.model_dump()
    block, new = asked.block or BLOCK, asked.max_new_tokens
    return Ask(asked.prompt_ids, new, block, MASK, policy, confidence=confidence, key=key, **chosen)


def expected_in_window(subject: Subject, asked: Request, ends: tuple[int, ...] = ()) -> list[int]:
    """The tokens of a request that names its window, by the independent decoder of windows."""
    ask, given = ask_of(asked), {name: value for name in WINDOW if (value := getattr(asked, name)) != "preset"}
    shares = {"add": 0.9, "semi": 0.9} | {name[4:]: given[name] for name in given if name != "window_blocks"}
    length = len(ask.prompt) + ask.new
    canvas = [*ask.prompt, *[MASK] * (-(-length // ask.block) * ask.block - len(ask.prompt))]
    editable = set(range(len(ask.prompt), len(canvas)))
    window = oracle_windows.Window(int(given["window_blocks"]), ends=ends, **shares)
    return oracle_windows.decode(subject.model, ask, window, canvas, editable)[len(ask.prompt) : length]
