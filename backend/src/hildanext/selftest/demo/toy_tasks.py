# Three tasks with one right answer each, small enough to learn in a minute: reverse letters, sort digits, add numbers.
# Entry points: TASKS, Item, items, encode, decode, new_toy, ToyWork, train_toy, measure_toy.
# A row is one canvas: a question of at most 10 characters, given, and 16 masked characters for the answer.
# They show what free text of a tiny model cannot: a whole block decided in one or two forwards, and exactly right.
"""Toy tasks that prove parallel decoding."""

from __future__ import annotations

import random
import string
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from hildanext.config.decode import DecodeConfig
from hildanext.config.model import NewModelConfig
from hildanext.config.train import OptimizerConfig, TrainConfig
from hildanext.core.types import Batch, LossReport
from hildanext.decoding.request import Request
from hildanext.measure.generation import Completion, DiffusionGenerator
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.meta import HildaMeta
from hildanext.models.new import new_model
from hildanext.registry import build
from hildanext.report.intervals import mean, share
from hildanext.train.loop import Notes, Recorder, Trainer
from hildanext.train.optim import build_optimizer

QUESTION, ANSWER = 10, 16
CANVAS = QUESTION + ANSWER
END, MASK = 0, 1
CHARACTERS = string.ascii_lowercase + string.digits + "+?"
VOCABULARY = len(CHARACTERS) + 2
SHAPE = NewModelConfig(hidden=128, layers=3, heads=4, kv_heads=2, head_dim=64, ffn=160, window=CANVAS)
ROWS, WARMUP = 64, 60
ORDER = ("add", "reverse", "add", "sort", "add")
OBJECTIVE = {
    "type": "mask_and_edit",
    "noise": {"low": 0.3, "replace": 0.0},
    "weighting": "uniform",
    "normaliser": "masked",
    "keep_weight": 0.1,
}


@dataclass(frozen=True)
class Item:
    """One question and its only right answer, at most 16 characters each."""

    task: str
    prompt: str
    answer: str


def _reverse(rng: random.Random) -> Item:
    word = "".join(rng.choices(string.ascii_lowercase, k=8))
    return Item("reverse 8 letters", f"r?{word}", word[::-1])


def _sort(rng: random.Random) -> Item:
    digits = "".join(rng.choices(string.digits, k=8))
    return Item("sort 8 digits", f"s?{digits}", "".join(sorted(digits)))


def _add(rng: random.Random) -> Item:
    a, b = rng.randrange(100, 1000), rng.randrange(100, 1000)
    return Item("add 3-digit numbers", f"a?{a}+{b}", f"{a + b:04d}")


TASKS: dict[str, Callable[[random.Random], Item]] = {"reverse": _reverse, "sort": _sort, "add": _add}


def items(task: str, seed: int, count: int, held_out: bool = False) -> Iterator[Item]:
    """`count` items of a task; held-out prompts are those whose CRC-32 is 0 modulo 8, training has the others."""
    from zlib import crc32

    rng, found = random.Random(f"toy:{task}:{seed}:{held_out}"), 0
    while found < count:
        item = TASKS[task](rng)
        if (crc32(item.prompt.encode()) % 8 == 0) == held_out:
            found += 1
            yield item


def encode(text: str, length: int) -> list[int]:
    """`length` token ids: the characters, then END. ValueError for a character that is not in the vocabulary."""
    ids = [CHARACTERS.index(character) + 2 for character in text]
    return ids + [END] * (length - len(ids))


def decode(ids: Sequence[int]) -> str:
    """The characters before the first END; [MASK] shows as '_'."""
    kept = list(ids)[: list(ids).index(END)] if END in ids else ids
    return "".join("_" if token == MASK else CHARACTERS[token - 2] for token in kept)


def batch_of(chosen: Sequence[Item]) -> Batch:
    """Rows [B, 26] of question and answer; learn is True on the answer."""
    tokens = torch.tensor([encode(item.prompt, QUESTION) + encode(item.answer, ANSWER) for item in chosen])
    learn = (torch.arange(CANVAS) >= QUESTION).expand_as(tokens)
    return Batch(tokens, learn, torch.zeros_like(tokens))


def new_toy(seed: int) -> Any:
    """A fresh model of 0.49 M parameters, with what the decoder reads from a loaded model."""
    model = new_model(SHAPE, VOCABULARY, seed, eos_token_id=END)
    denoiser = HFDenoiser(model, MASK)
    return SimpleNamespace(denoiser=denoiser, tokenizer=None, meta=HildaMeta(mask_id=MASK, block=CANVAS))


class ToyWork:
    """A step is 64 fresh rows of all three tasks under an objective, over the whole canvas."""

    def __init__(self, model: HFDenoiser, seed: int, objective: Mapping[str, Any]) -> None:
        self.model, self.objective = model, build("objectives", objective)
        self.streams = {task: items(task, seed, 1 << 40) for task in TASKS}
        self.rng = torch.Generator().manual_seed(seed)

    def micro_batches(self, step: int) -> Iterator[Callable[[], LossReport]]:
        """One batch; the tasks take turns."""
        chosen = [next(self.streams[ORDER[(step + row) % len(ORDER)]]) for row in range(ROWS)]
        yield partial(self.objective.loss, self.model, batch_of(chosen), CANVAS, self.rng)

    def notes(self) -> Notes:
        """The characters of a step."""
        return Notes(ROWS * CANVAS)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a toy is trained in one go."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """ValueError: a toy is trained in one go."""
        raise ValueError("toy: its training takes a minute and is not resumed; train it anew")


class _Curve(Recorder):
    def __init__(self, advance: Callable[..., None] | None) -> None:
        self.losses, self.advance = list[float](), advance

    def write(self, record: Mapping[str, Any]) -> None:
        if "loss" in record:
            self.losses.append(record["loss"])
            if self.advance is not None:
                self.advance(1, loss=record["loss"])


@dataclass(frozen=True)
class Cost:
    """What a training cost: optimiser steps, process CPU seconds, wall seconds, parameters, mean loss of the end."""

    steps: int
    cpu_seconds: float
    seconds: float
    parameters: int
    loss: float


def train_toy(
    loaded: Any, steps: int, seed: int, advance: Callable[..., None] | None = None,
    objective: Mapping[str, Any] = OBJECTIVE,
) -> Cost:  # fmt: skip
    """Train on all three tasks, 64 rows a step, in the loop that trains every model, without a run directory."""
    rates = OptimizerConfig(
        name="muon" if hasattr(torch.optim, "Muon") else "adamw", lr=3e-3, weight_decay=0.01, schedule="linear",
        warmup=min(0.5, WARMUP / steps), final=0.02,
    )  # fmt: skip
    model, curve = loaded.denoiser, _Curve(advance)
    optimizer = build_optimizer(model, rates).optimizer
    started, cpu = time.monotonic(), time.process_time()
    settings = TrainConfig(eval_every=0, checkpoint_every=0)
    Trainer(ToyWork(model, seed, objective), model, optimizer, steps, rates, settings, curve).fit()
    model.eval()
    ends, size = curve.losses[-20:], sum(parameter.numel() for parameter in model.parameters())
    return Cost(steps, time.process_time() - cpu, time.monotonic() - started, size, sum(ends) / len(ends))


def ask(loaded: Any, chosen: Sequence[Item], **settings: Any) -> list[Completion]:
    """Decoded answers; settings are fields of the request, tau_mask above all."""
    generator = DiffusionGenerator(loaded, DecodeConfig(block=CANVAS, requests=64, step_tokens=1 << 14))
    requests = [
        Request(prompt_ids=tuple(encode(item.prompt, QUESTION)), max_new_tokens=ANSWER, **settings) for item in chosen
    ]
    return generator.complete(requests)


def measure_toy(loaded: Any, task: str, count: int, seed: int, **settings: Any) -> dict[str, Any]:
    """Exact match on held-out items and forwards for the 16-character answer, each with its interval."""
    chosen = list(items(task, seed, count, held_out=True))
    done = ask(loaded, chosen, **settings)
    right = sum(decode(one.ids) == item.answer for one, item in zip(done, chosen, strict=True))
    return {
        "task": chosen[0].task,
        "exact_match": share(right, count).as_dict(),
        "forwards": mean([float(one.forwards) for one in done], "forwards").as_dict(),
    }
