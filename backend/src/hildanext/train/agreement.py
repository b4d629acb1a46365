# Before the first step: do all ranks run the same program on the same data with the same settings?
# Entry points: facts, require_same.
# Two machines that differ in a version or in a file train without an error and to another model. What is compared is
# told by every rank to every other; a difference ends all of them with the same line.
"""Agreement of the ranks."""

from __future__ import annotations

import hashlib
import platform
import socket
from collections.abc import Mapping
from pathlib import Path

from hildanext.config import Config
from hildanext.config.loader import resolved_json
from hildanext.data.loader import rows_hash
from hildanext.data.shards import ShardSet
from hildanext.environment import git_state, versions
from hildanext.errors import RunError
from hildanext.models.load import NEW, place
from hildanext.train.distributed import Ranks

COMPARED = ("hildanext", "torch", "transformers", "tokenizers", "safetensors", "numpy", "peft", "bitsandbytes")
SHOWN = 40


def facts(config: Config, shards: ShardSet, evaluation: ShardSet) -> dict[str, str]:
    """What must be the same on every rank, by name: versions, commit, configuration, rows, files of the model."""
    found = {name: str(version) for name, version in versions(COMPARED).items()}
    found |= {"python": platform.python_version(), "commit": str(git_state(Path(__file__).parent)["commit"])}
    found["configuration"] = _digest(resolved_json(config))
    found |= {f"rows of {name}": str(rows_hash(rows.manifest)) for name, rows in _named(config, shards, evaluation)}
    folder = place(config.model.path) if config.model.path != NEW else None
    if folder is not None and folder.is_dir():
        files = sorted((path.name, path.stat().st_size) for path in folder.iterdir() if path.is_file())
        texts = [(folder / name).read_text("utf-8") for name, _ in files if name in ("config.json", "hildanext.json")]
        found["model"] = _digest(repr((files, texts)))
    return found


def _named(config: Config, shards: ShardSet, evaluation: ShardSet) -> list[tuple[str, ShardSet]]:
    return [(config.train.split, shards), (config.train.eval_split, evaluation)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def require_same(ranks: Ranks, own: Mapping[str, str]) -> None:
    """RunError on every rank, with the same line, where one tells other facts than the first rank. Every rank calls
    it."""
    told = ranks.gathered((socket.gethostname(), dict(own)))
    host, first = told[0]
    for rank, (other, found) in enumerate(told):
        names = [name for name in {**first, **found} if first.get(name) != found.get(name)]
        if names:
            shown = "; ".join(
                f"{name} {str(found.get(name))[:SHOWN]}, there {str(first.get(name))[:SHOWN]}" for name in names[:3]
            )
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise RunError(
                f"train: rank {rank} ({other}) is not as rank 0 ({host}): {shown}{more}; give every machine the same"
                " versions, configuration and files"
            )
