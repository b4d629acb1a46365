# Tiny shards, a tiny parent and configurations that train it in well under a second per run.
# Entry points: make_shards, configuration, run, losses, stop_after.
# Shards hold random text of a fixed seed; chats mark their second half as response.
"""Material of the training tests."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hildanext.config import load_config
from hildanext.config.root import Config
from hildanext.data.packing import Packer, Piece
from hildanext.data.shards import ShardWriter
from hildanext.data.tokenizers import encode_texts, end_of_document, tokenizer_hash, train_small
from hildanext.progress import Console
from hildanext.train.recipes.conversion import train_command
from hildanext.train.recorder import RunRecorder

WINDOW = 32
WORDS = "the cat sat on a mat and dog ran to red house where bird sang all day long".split(" ")  # noqa: SIM905
QUIET = Console(quiet=True)
MUON = {
    "optimizer__name": "muon", "train__steps": 4, "train__checkpoint_every": 2, "train__parity": False,
    "ladder": {"fixed": 8},
}  # fmt: skip
TURNS = {"type": "multi_turn", "noise": {"complementary": True, "low": 0.2, "high": 0.8}}


def texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(6, 24))) for _ in range(count)]


def make_shards(folder: Path, rows: int = 24) -> Path:
    tokenizer = train_small(texts(50, 0), folder / "tokenizer", 290)
    end = end_of_document(tokenizer)
    for split, seed, share in (("train", 1, 0.0), ("eval", 2, 0.0), ("sft_train", 3, 0.5), ("sft_eval", 4, 0.5)):
        writer, packer = ShardWriter(folder / split, WINDOW, len(tokenizer), end), Packer(WINDOW)
        for index, ids in enumerate(encode_texts(tokenizer, texts(rows, seed))):
            tokens = np.array([*ids, end])
            learn = np.arange(len(tokens)) >= share * len(tokens)
            for row in packer.add(Piece(index, tokens, learn)):
                writer.write(row)
        for row in packer.finish():
            writer.write(row)
        writer.close({"tokenizer_hash": tokenizer_hash(tokenizer), "tokenizer": str(folder / "tokenizer")})
    return folder


def overrides(shards: Path, **changes: Any) -> list[str]:
    values: dict[str, Any] = {
        "train.data": str(shards), "model.path": "new", "model.device": "cpu",
        "model.new": {"hidden": 16, "layers": 2, "heads": 2, "kv_heads": 1, "ffn": 32, "window": 64},
        "ladder": {"warmup": [1, 4, 0], "decay_to": 8}, "train.steps": 8, "train.batch": 2, "train.eval_every": 0,
        "train.eval_rows": 2, "train.eval_samples": 1, "train.checkpoint_every": 0, "optimizer.lr": 0.003,
    }  # fmt: skip
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()]


def configuration(shards: Path, **changes: Any) -> Config:
    return load_config(None, overrides(shards, **changes))


def run(path: Path, shards: Path, **changes: Any) -> dict[str, Any]:
    return train_command(configuration(shards, **changes), QUIET, "convert-wsd", path)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def losses(path: Path) -> list[float]:
    return [record["loss"] for record in records(path) if "loss" in record]


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """A signal to this process when the line of `step` has been written; the loop finishes the next step and stops."""
    written = RunRecorder.write

    def write(self: RunRecorder, record: dict[str, Any]) -> None:
        written(self, record)
        if "loss" in record and record["step"] == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(RunRecorder, "write", write)
