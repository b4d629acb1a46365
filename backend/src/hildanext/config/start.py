# A first configuration for a goal and a machine, every value with the reason it stands there.
# Entry points: GOALS, MACHINES, Choice, Plan, choices, commented.
# JSON has no comments, so a key that begins with // is one: the loader drops it, and every JSON reader still reads the
# file. What is not written keeps its default; `hildanext COMMAND --print-config` shows those.
"""Commented configurations."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GOALS = {"convert": "convert-wsd", "sft": "sft", "rl": "rl", "serve": "serve"}
"""What a configuration may be for, and the command that reads it."""
MACHINES = {
    "cpu": "a laptop or server without a GPU", "gpu8": "one GPU of about 8 GB", "gpu": "one GPU of 24 GB or more",
    "multigpu": "several GPUs, under torchrun",
}  # fmt: skip
ROWS = ("train.batch", "train.accumulate")
QUANT = "needs pip install 'hildanext[quant]'"


@dataclass(frozen=True)
class Choice:
    """One value by place, and why it is so."""

    place: str
    value: Any
    why: str


@dataclass(frozen=True)
class Plan:
    """What is to be written: goal and machine by name, model.path, the sources of documents (none: the built-in story
    world) and what to call the set."""

    goal: str
    machine: str
    model: str
    sources: tuple[Mapping[str, Any], ...] = ()
    name: str = ""
    bundled: bool = field(default=False)

    @property
    def small(self) -> bool:
        """Whether adapters take the place of all weights."""
        return self.machine in ("cpu", "gpu8") and not self.bundled


def choices(plan: Plan) -> list[Choice]:
    """The values of a plan, in the order in which they are written. KeyError for a goal or machine that is none."""
    assert plan.machine in MACHINES
    made = {"convert": _convert, "sft": _sft, "rl": _rl, "serve": _serve}[plan.goal]
    return [Choice("model.path", plan.model, _model(plan.goal)), *made(plan)]


def _model(goal: str) -> str:
    if goal == "convert":
        return (
            "the AR parent: a Hugging Face folder, a GGUF file or a run; `hildanext inspect` says whether it qualifies"
        )
    return "a converted model or a run of hildanext; `hildanext models` lists what is here"


def _data(plan: Plan) -> list[Choice]:
    sources = list(plan.sources) or [{"type": "storyworld", "seed": 11}]
    yours = "{'type': 'jsonl', 'path': 'mine.jsonl', 'weight': 1}"
    about = (
        f"{'files of texts or chats' if plan.sources else 'stories of the built-in world'}, mixed by weight: {yours}"
    )
    return [
        Choice("data.name", plan.name or "storyworld-11", "the set is written to data/processed/<name>"),
        Choice("data.sources", sources, about),
        Choice("train.prepare", True, "run prepare-data and tokenize first where the shards are missing"),
    ]


def _memory(plan: Plan) -> list[Choice]:
    found: list[Choice] = []
    if plan.small:
        rank = {"kind": "lora", "rank": 16, "alpha": 32}
        found.append(
            Choice("model.adapter", rank, f"low-rank matrices instead of all weights, to save memory; {QUANT}")
        )
    if plan.machine != "cpu":
        found.append(Choice("train.gradient_checkpointing", True, "layers are computed twice to halve the memory"))
    if plan.machine in ("gpu", "multigpu"):
        found.append(Choice("train.autocast", "bfloat16", "products in bfloat16, weights in float32"))
    if plan.machine == "multigpu":
        found.append(
            Choice("train.parallel", "fsdp2", "ranks share the weights: torchrun --nproc-per-node N -m hildanext")
        )
    return found


def _sizes(plan: Plan, steps: Mapping[str, int]) -> list[Choice]:
    batch = {"cpu": (8, 1), "gpu8": (1, 16), "gpu": (4, 8), "multigpu": (8, 1)}[plan.machine]
    window = {"cpu": 256, "gpu8": 512, "gpu": 1024, "multigpu": 1024}[plan.machine]
    return [
        Choice("tokenize.window", window, "longest row, tokens; memory grows with it"),
        Choice("train.batch", batch[0], "rows of a micro-batch; halve it where memory runs out"),
        Choice("train.accumulate", batch[1], "micro-batches per step; double it when batch is halved"),
        Choice("train.steps", steps[plan.machine], "the loss of metrics.jsonl says whether more would help"),
        Choice("train.checkpoint_every", max(20, steps[plan.machine] // 10), "steps; a stopped run goes on (--resume)"),
        Choice("train.eval_every", max(20, steps[plan.machine] // 5), "steps between evaluations on held-out rows"),
    ]  # fmt: skip


def _convert(plan: Plan) -> list[Choice]:
    block = 8 if plan.machine == "cpu" else 32
    rate = 1e-3 if plan.bundled or plan.machine == "cpu" else 2e-4 if plan.small else 1e-4
    return [
        Choice("model.shift", "clean", "at block 1 the model is its parent from the first step on"),
        Choice("model.block_grid", "per_document", "blocks begin with each document, as they do in an answer"),
        *_memory(plan), *_data(plan),
        Choice("ladder.decay_to", block, "last block size, tokens: small ones are learned sooner, large decode faster"),
        *(_short_ladder(block) if plan.machine == "cpu" else []),
        Choice("optimizer.lr", rate, "peak learning rate: lower it where the loss jumps"),
        Choice("optimizer.schedule", "wsd", "warm-up, constant, decay: the middle may be prolonged later"),
        *_sizes(plan, {"cpu": 400, "gpu8": 4000, "gpu": 20000, "multigpu": 20000}),
    ]  # fmt: skip


def _short_ladder(block: int) -> list[Choice]:
    return [
        Choice("ladder.warmup", [2, 4], "block sizes on the way up, tokens"),
        Choice("ladder.stable", [block], "block size of the long stage, tokens: few steps go straight to the last one"),
        Choice("ladder.shares", [0.2, 0.8, 0.0], "shares of the steps: on the way up, long stage, on the way down"),
    ]


def _sft(plan: Plan) -> list[Choice]:
    return [
        *_memory(plan), *_data(plan),
        Choice("ladder.fixed", 16 if plan.bundled else 32, "block size, tokens; the one of the model's conversion"),
        Choice("optimizer.lr", 2e-4 if plan.small else 1e-5, "peak learning rate"),
        *_sizes(plan, {"cpu": 300, "gpu8": 2000, "gpu": 5000, "multigpu": 5000}),
    ]  # fmt: skip


def _rl(plan: Plan) -> list[Choice]:
    reward = [{"type": "arithmetic", "graded": 0.5}]
    tuned = 1e-3 if plan.bundled else 2e-5 if plan.small else 2e-6
    return [
        *_memory(plan), *_data(plan),
        Choice("rl.rows", "world:arithmetic:5", "what is asked: a file of rows, or problems of the built-in world"),
        Choice("rl.rewards", reward, "what is paid for; the answer must be checkable (docs/rl.md lists the rewards)"),
        Choice("rl.groups", 4, "prompts answered together"),
        Choice("rl.samples", 8, "answers per prompt; their mean is what an answer is compared with"),
        Choice("rl.answer", 48, "longest answer, tokens"),
        Choice("rl.held_out", 32, "prompts that are never learned from; the run ends when their reward falls"),
        Choice("decode.temperature", 1.0, "answers must differ within a group; 1.5 for a small sure model"),
        Choice("ladder.fixed", 16 if plan.bundled else 32, "block size, tokens; the one of the model's conversion"),
        Choice("optimizer.lr", tuned, "peak learning rate; reinforcement wants a tenth of what SFT takes"),
        *[one for one in _sizes(plan, dict.fromkeys(MACHINES, 100)) if one.place not in ROWS],
        Choice("train.batch", 8, "answers of a micro-batch; groups x samples is a multiple of batch x accumulate"),
        Choice("train.accumulate", 4, "micro-batches per step"),
    ]  # fmt: skip


def _serve(plan: Plan) -> list[Choice]:
    return [
        Choice("serve.host", "127.0.0.1", "beyond loopback clients need a key: HILDANEXT_API_KEY"),
        Choice("serve.port", 8080, "TCP port; 0 picks a free one"),
        Choice("serve.models", [], "further models: [\"FOLDER\", \"NAME=FOLDER\"]; requests choose by name"),
        Choice("decode.mode", "Q_MODE", "Q_MODE for quality, S_MODE for speed; a request may choose another"),
        Choice("decode.requests", 8 if plan.machine == "cpu" else 32, "requests decoded together"),
        Choice("decode.kv_bytes", (1 if plan.machine == "cpu" else 4) << 30, "bytes of keys and values at most"),
        Choice("decode.prefix_bytes", (256 if plan.machine == "cpu" else 1024) << 20, "for shared beginnings"),
        Choice("serve.queue", 64, "requests waiting or decoding; more get 429"),
        Choice("serve.drain_seconds", 5.0, "after SIGTERM /health says draining for so long, then it stops"),
        Choice("serve.shutdown_seconds", 60, "time that running answers have to finish when it stops, seconds"),
    ]  # fmt: skip


def commented(found: list[Choice], description: str) -> str:
    """The values as indented JSON, above each a key // with its reason."""
    tree: dict[str, Any] = {"description": description}
    for one in found:
        here, (*sections, name) = tree, one.place.split(".")
        for section in sections:
            here = here.setdefault(section, {})
        here[f"// {name}"] = one.why
        here[name] = one.value
    return json.dumps(tree, indent=2, ensure_ascii=False) + "\n"
