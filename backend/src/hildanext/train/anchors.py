# Hidden states of the AR parent, written once for every row of the shards: what objective `align` reads with `anchors`.
# Entry points: write_anchors.
# The size is said before a row is read, and a disk that has no room is an error then. Rows that are there are skipped.
"""Precomputed states of the parent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from hildanext.config import Config
from hildanext.data.row_store import RowStore, bytes_needed, missing_rows, row_key, row_length
from hildanext.data.shards import ShardSet, check_tokenizer
from hildanext.data.tokenizers import tokenizer_hash
from hildanext.errors import ConfigError, DataError
from hildanext.models.about import weights_hash
from hildanext.models.denoiser import network
from hildanext.models.layers import layer_list, watching
from hildanext.models.load import Loaded, load_model
from hildanext.progress import Console
from hildanext.train.training import check_window, open_shards, shards_folder

MANY = 16 << 10
"""Bytes per token from which on the parent is better run beside the student."""


def write_anchors(config: Config, console: Console) -> dict[str, Any]:
    """Write the states of model.path over the rows of train.split; returns where, how many rows and bytes. DataError
    where the disk has no room. Source: arXiv:2605.06885, the frozen parent's states on clean text."""
    settings, shards = config.anchors, open_shards(config, config.train.split)
    loaded = load_model(config.model, console)
    check_tokenizer(shards, loaded.tokenizer)
    check_window(loaded, shards.window)
    chosen = shards.part(0, min(settings.rows, len(shards))) if settings.rows else shards
    net, folder = network(loaded.denoiser), Path(settings.folder or shards_folder(config) / "anchors")
    layers, width = _layers(config, len(layer_list(net))), int(loaded.denoiser.head().shape[1])
    _say_size(config, chosen, (len(layers), width), folder, console)
    facts = {
        "kind": "anchors", "format": 1, "dtype": settings.dtype, "shape": [len(layers), width], "layers": list(layers),
        "tokenizer_hash": tokenizer_hash(loaded.tokenizer), "weights": weights_hash(str(loaded.path)),
    }  # fmt: skip
    store = RowStore.begin(folder, facts)
    try:
        written = _write(store, loaded, chosen, settings.at_once, console)
    finally:
        store.close()
    size = bytes_needed(store.positions, settings.dtype, store.shape)
    console.say(f"{folder}: {len(store.places)} rows, {size / 2**20:.1f} MiB; objective.anchors={folder}")
    return {"folder": str(folder), "rows": len(store.places), "written": written, "bytes": size, "layers": list(layers)}


def _layers(config: Config, count: int) -> tuple[int, ...]:
    low, high = (share * count for share in config.anchors.depth)
    found = config.anchors.layers or tuple(n for n in range(1, count + 1) if low < n <= high + 1e-9)
    wrong = [number for number in found if not 1 <= number <= count]
    if wrong or not found:
        raise ConfigError(f"anchors.layers: {wrong or 'no layer in anchors.depth'}; this model has layers 1 to {count}")
    return found


def _say_size(config: Config, shards: ShardSet, shape: tuple[int, int], folder: Path, console: Console) -> None:
    each = bytes_needed(1, config.anchors.dtype, shape)
    positions = sum(row_length(shards[index].learn) for index in range(len(shards)))
    done = RowStore.open(folder, "anchors").positions if (folder / "rows.json").exists() else 0
    need = each * max(0, positions - done)
    console.say(
        f"{positions:,} tokens x {shape[0]} layers x {shape[1]} channels in {config.anchors.dtype}:"
        f" {each / 1024:.1f} KiB per token, {each * positions / 2**30:.3f} GiB"
    )
    if each > MANY:
        console.warn(
            f"anchors: {each / 1024:.0f} KiB for every token; fewer layers (anchors.layers), or the parent beside the"
            " student (no objective.anchors), which costs one causal forward"
        )
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if need > free:
        raise DataError(
            f"{folder}: {need / 2**30:.1f} GiB are needed and {free / 2**30:.1f} are free; give anchors.layers,"
            " anchors.rows, or another anchors.folder"
        )


def _write(store: RowStore, loaded: Loaded, shards: ShardSet, at_once: int, console: Console) -> int:
    written = 0
    with console.bar("anchors", len(shards)) as bar:
        for batch in missing_rows(store, shards, at_once, bar):
            batch_there = batch.to(loaded.device)
            with torch.no_grad(), watching(network(loaded.denoiser), store.facts["layers"]) as states:
                loaded.denoiser.causal_features(batch_there, torch.zeros_like(batch_there.learn))
            stack = torch.stack([states[number] for number in store.facts["layers"]], dim=2)
            for row, (tokens, docs, learn) in enumerate(zip(batch.tokens, batch.docs, batch.learn, strict=True)):
                length = row_length(learn.numpy())
                store.add(row_key(tokens.numpy(), docs.numpy(), length), stack[row, :length])
            store.flush()
            written += len(batch.tokens)
    return written
