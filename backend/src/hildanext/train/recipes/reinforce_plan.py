# What a run of `rl` will do, before it does it: steps, rollouts, answers, and the memory of rollouts and updates.
# Entry points: policy_plan.
# Time is not foretold: it depends on how long answers become and how fast they are decoded.
"""The plan of reinforcement learning."""

from __future__ import annotations

from typing import Any

from hildanext.config import Config
from hildanext.models.policy_footprint import policy_footprint
from hildanext.models.preflight import PARTS, estimate
from hildanext.progress import Console
from hildanext.train.recipes.rollout import updates_of


def policy_plan(config: Config, console: Console) -> dict[str, Any]:
    """Show the plan of a run; trains nothing and needs no data. ConfigError and ModelError as the run itself."""
    answers = config.rl.groups * config.rl.samples
    updates = updates_of(answers, config, "rl.groups x rl.samples") * config.rl.epochs
    rollouts = -(-config.train.steps // updates)
    memory = estimate(config, config.tokenize.window, footprint=policy_footprint(config, "rl"))
    console.say(
        f"{config.train.steps} steps, {updates} after each of {rollouts} rollouts of {answers} answers"
        f" ({config.rl.groups} prompts x {config.rl.samples}) of at most {config.rl.answer} tokens"
    )
    shown = (*PARTS, "total", "limit")
    parts = ", ".join(f"{name} {memory[name] / 2**30:.2f}" for name in shown if memory.get(name))
    console.say(f"memory, GiB: {parts}; {'fits' if memory['fits'] else 'does not fit'}")
    if not memory["fits"] and memory.get("remedies"):
        console.say(f"would fit: {' | '.join(memory['remedies'])}")
    return {
        "steps": config.train.steps, "rollouts": rollouts, "updates": updates, "answers": rollouts * answers,
        "memory": memory,
    }  # fmt: skip
