# In which order a model fills the masks of its training texts, written once for every row: what `trajectory` trains on.
# Entry points: write_trajectories.
# Forced: the rows of the shards, each filled with its own tokens. Free: the model's answers to the rows' prompts, which
# become rows of their own beside their orders. An order is one number a token; what is written is not decoded again.
"""Recorded orders of decoding."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hildanext.config import Config
from hildanext.data.packing import Piece
from hildanext.data.row_store import RowStore, missing_rows, row_key, row_length
from hildanext.data.shards import ShardSet, ShardWriter, check_tokenizer
from hildanext.data.tokenizers import tokenizer_hash
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import DEFAULT_BLOCK, BlockEngine
from hildanext.decoding.forced import forced
from hildanext.decoding.modes import resolve_mode
from hildanext.decoding.request import Request
from hildanext.decoding.trajectory import Trajectory
from hildanext.disk import replacing, write_atomic
from hildanext.errors import ConfigError
from hildanext.models.about import weights_hash
from hildanext.models.load import Loaded, load_model
from hildanext.progress import Console
from hildanext.train.recipes.on_policy import prompts_of
from hildanext.train.training import check_window, open_shards, shards_folder

ROUND = 64
"""Free answers decoded between two writes to disk."""


def write_trajectories(config: Config, console: Console) -> dict[str, Any]:
    """Write the orders of model.path over train.split under the section decode; returns where, rows, tokens per forward
    and the share filled rightly. Source: d3LLM arXiv:2601.07568, pseudo-trajectories."""
    settings, shards = config.trajectories, open_shards(config, config.train.split)
    loaded = load_model(config.model, console)
    check_tokenizer(shards, loaded.tokenizer)
    check_window(loaded, shards.window)
    block = settings.block or loaded.meta.block or DEFAULT_BLOCK
    if shards.window % block:
        raise ConfigError(f"trajectories.block {block} does not divide the window {shards.window} of {shards.folder}")
    chosen = shards.part(0, min(settings.rows, len(shards))) if settings.rows else shards
    folder = Path(settings.folder or shards_folder(config) / "trajectories")
    plan = resolve_mode(Request(prompt=""), config.decode, loaded.meta.decode)
    facts: dict[str, Any] = {
        "kind": "trajectories", "format": 1, "dtype": "int16", "shape": [], "block": block, "free": settings.free,
        "policy": {"type": plan.name, **plan.policy.model_dump(mode="json")}, "seed": config.seed,
        "tokenizer_hash": tokenizer_hash(loaded.tokenizer), "weights": weights_hash(str(loaded.path)),
    }  # fmt: skip
    store = RowStore.begin(folder, facts)
    try:
        sums = (
            _free(config, store, loaded, chosen, console)
            if settings.free
            else _forced(config, store, loaded, chosen, console)
        )
    finally:
        store.close()
    return _told(store, sums, console)


def _told(store: RowStore, sums: dict[str, int], console: Console) -> dict[str, Any]:
    report: dict[str, Any] = {
        "folder": str(store.folder),
        "rows": len(store.places),
        **sums,
        "bytes": 2 * store.positions,
    }
    if sums["forwards"]:
        report["tokens_per_forward"] = sums["tokens"] / sums["forwards"]
        right = f", {sums['right'] / sums['tokens']:.1%} filled rightly" if "right" in sums else ""
        console.say(f"{sums['tokens']:,} tokens, {report['tokens_per_forward']:.2f} per forward{right}")
    console.say(
        f"{store.folder}: {len(store.places)} rows, {report['bytes'] / 2**20:.2f} MiB; objective.orders={store.folder}"
    )
    return report


def _forced(config: Config, store: RowStore, loaded: Loaded, shards: ShardSet, console: Console) -> dict[str, int]:
    policy = resolve_mode(Request(prompt=""), config.decode, loaded.meta.decode).policy
    sums = {"written": 0, "tokens": 0, "forwards": 0, "right": 0}
    with console.bar("trajectories", len(shards)) as bar:
        for batch in missing_rows(store, shards, config.trajectories.at_once, bar):
            found = forced(loaded.denoiser, batch.to(loaded.device), int(store.facts["block"]), policy, config.seed)
            for row, steps in enumerate(found.steps):
                length = row_length(batch.learn[row].numpy())
                store.add(row_key(batch.tokens[row].numpy(), batch.docs[row].numpy(), length), steps[:length])
            store.flush()
            made: tuple[Any, ...] = (len(batch.tokens), found.tokens().sum(), found.forwards().sum(), found.right.sum())
            sums = {name: value + int(more) for (name, value), more in zip(sums.items(), made, strict=True)}
    return sums


def _free(config: Config, store: RowStore, loaded: Loaded, shards: ShardSet, console: Console) -> dict[str, int]:
    block, window = int(store.facts["block"]), shards.window
    prompts = prompts_of(shards, window - block)
    journal = store.folder / "answers.jsonl"
    done = journal.read_text(encoding="utf-8").splitlines(keepends=True) if journal.exists() else []
    answers = [json.loads(line) for line in done if line.endswith("}\n")]
    if len(answers) < len(done):
        write_atomic(journal, "".join(json.dumps(one) + "\n" for one in answers))
    with console.bar("trajectories", len(prompts), len(answers)) as bar, torch.no_grad():
        while len(answers) < len(prompts):
            first = len(answers)
            new = list(_answered(config, loaded, prompts[first : first + ROUND], (block, window, first)))
            answers += new
            with journal.open("w" if not first else "a", encoding="utf-8") as file:
                file.writelines(json.dumps(one) + "\n" for one in new)
            bar.advance(len(new))
    for one in answers:
        tokens, docs = _padded(one["tokens"], window, shards)
        store.add(row_key(tokens, docs, len(one["tokens"])), torch.tensor(one["steps"]))
    _write_rows(answers, store.folder / "rows" / config.train.split, shards)
    console.say(f"{store.folder / 'rows'}: the answers as rows; train.data={store.folder / 'rows'}")
    return {name: sum(one[name] for one in answers) for name in ("forwards",)} | {
        "tokens": sum(len(one["tokens"]) - one["first"] for one in answers), "written": len(answers),
    }  # fmt: skip


def _answered(
    config: Config, loaded: Loaded, prompts: list[tuple[int, ...]], place: tuple[int, int, int]
) -> Iterator[dict[str, Any]]:
    block, window, first = place
    asked = [
        Request(
            prompt_ids=prompt, sample=first + index, block=block, trace=True,
            max_new_tokens=min(config.decode.max_new_tokens, window - len(prompt)),
        )
        for index, prompt in enumerate(prompts)
    ]  # fmt: skip
    for prompt, result in zip(prompts, Driver(BlockEngine(loaded, config.decode)).run(asked), strict=True):
        found = Trajectory.of(prompt, result, loaded.denoiser.mask_id)
        try:
            steps = found.steps()
        except ValueError:
            raise ConfigError(
                "decode: an answer was rewritten while it was decoded, so no order is its own; set decode.tau_edit=null"
            ) from None
        yield {
            "tokens": found.tokens[: found.stop].tolist(), "first": found.first, "forwards": result.metrics.forwards,
            "steps": steps[: found.stop].tolist(),
        }  # fmt: skip


def _padded(tokens: list[int], window: int, shards: ShardSet) -> tuple[Any, Any]:
    row = np.full(window, int(shards.manifest["pad_id"]), dtype=np.int64)
    row[: len(tokens)] = tokens
    return row, (np.arange(window) >= len(tokens)).astype(np.int64)


def _write_rows(answers: list[dict[str, Any]], folder: Path, shards: ShardSet) -> None:
    known = {
        name: value
        for name, value in shards.manifest.items()
        if name in ("tokenizer", "tokenizer_hash", "chat_template", "document_start")
    }
    with replacing(folder, "shards") as fresh:
        writer = ShardWriter(fresh, shards.window, int(shards.manifest["vocab_size"]), int(shards.manifest["pad_id"]))
        for index, one in enumerate(answers):
            tokens = np.array(one["tokens"])
            writer.write([Piece(index, tokens, np.arange(len(tokens)) >= one["first"])])
        writer.close(known)
