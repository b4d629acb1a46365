# Prints the table on keys of docs/decoding-methods.md: time, memory and drift of looks behind a long text.
# Entry points: `python docs/kv.py --text FILE '{"type": "mage"}' ...`; `--model`, `--contexts`, `--parts`, `--scores`.
# The context is computed once, exactly; each rule then takes its copy. Behind it the text's own blocks are looked at,
# all masked and half masked, and committed under the rule; exact looks at the same inputs are what is compared with.
"""Rules about keys against time, memory and drift, as a table."""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hildanext.cli import spoken
from hildanext.config import Config
from hildanext.decoding.compression import KVCompressor
from hildanext.decoding.compressors.kvzap import Kvzap
from hildanext.decoding.forward import ForwardRow, forward_kept
from hildanext.decoding.kept_keys import KeptKeys, KeptRow
from hildanext.models.load import load_model
from hildanext.registry import build
from hildanext.report.intervals import mean

HEADER = "| context | kv | ms per look | MB of keys | KL to exact, nats | same likeliest token |"
CHUNK = 1024


class Text:
    """A model and a text; keys go through `run`."""

    def __init__(self, loaded: Any, ids: Tensor, block: int) -> None:
        self.denoiser, self.ids, self.block = loaded.denoiser, ids, block
        self.back = 0 if loaded.denoiser.shift == "none" else 1

    def run(self, keys: KeptKeys, tokens: Tensor, start: int, opened: bool) -> tuple[Tensor, float]:
        """Log-probabilities [n, V] of the masks of `tokens` at `start`, and the processor's seconds."""
        first = max(0, start - self.back)
        own = torch.cat([self.ids[first:start], tokens])
        keys.turn(start if opened else None)
        row = ForwardRow(0, first, own, own == self.denoiser.mask_id, self.block)
        began = time.process_time()
        with torch.no_grad():
            (logits,) = forward_kept(
                self.denoiser, [KeptRow(keys, first, len(own), self.block, 1 << 30)], [row], self.denoiser.device
            )
        seconds = time.process_time() - began
        logits[:, self.denoiser.mask_id] = -torch.inf
        return logits.float().log_softmax(dim=1), seconds

    def context(self, length: int) -> KeptKeys:
        """The exact keys of the first `length` tokens."""
        scored = self.denoiser.key_scores is not None
        keys = KeptKeys(Kvzap(threshold=float("-inf")) if scored else KVCompressor(), length)
        for start in range(0, length, CHUNK):
            tokens = self.ids[start : min(start + CHUNK, length)]
            self.run(keys, tokens, start, False)
            keys.commit(len(tokens), False)
        return keys

    def made_up(self, length: int) -> KeptKeys:
        """Random keys for so many tokens: what they cost, not what they say."""
        keys, rng = self.context(self.block), torch.Generator().manual_seed(0)
        for layer in keys.layers.values():
            for name in ("key", "value"):
                held = getattr(layer, name)
                setattr(layer, name, torch.randn(len(held), length, held.shape[2], generator=rng, dtype=held.dtype))
            layer.place, layer.count = torch.arange(length).repeat(len(layer.key), 1), length
            layer.score = torch.randn(len(layer.key), length, generator=rng)
        keys.length = length
        return keys

    def looks(self, keys: KeptKeys, blocks: int) -> tuple[list[Tensor], list[float]]:
        """Both looks at each of the blocks that follow; seconds of the second ones."""
        found, seconds = list[Tensor](), list[float]()
        for _ in range(blocks):
            start = keys.length
            own = self.ids[start : start + self.block]
            half = own.clone()
            half[1::2] = self.denoiser.mask_id
            found.append(self.run(keys, torch.full_like(own, self.denoiser.mask_id), start, True)[0])
            scores, took = self.run(keys, half, start, True)
            found.append(scores)
            seconds.append(took)
            self.run(keys, own, start, False)
            keys.commit(self.block, True)
        return found, seconds

    def parts(self, keys: KeptKeys, blocks: int, size: int) -> tuple[list[Tensor], list[Tensor], list[list[float]]]:
        """Looks at half masked parts of `size`, alone over the keys of the look that entered them, and of the whole
        block; seconds of both."""
        alone, whole, seconds = list[Tensor](), list[Tensor](), list[list[float]]()
        for _ in range(blocks):
            start = keys.length
            for first in range(start, start + self.block, size):
                own = self.ids[start : start + self.block].clone()
                own[first - start :] = self.denoiser.mask_id
                self.run(keys, own, start, True)
                own[first - start : first - start + size : 2] = self.ids[first : first + size : 2]
                near = slice(first - start, first - start + size)
                found, quick = self.run(keys, own[near], first, True)
                exact, slow = self.run(keys, own, start, True)
                alone.append(found)
                whole.append(exact[: len(found)])
                seconds.append([quick, slow])
            self.run(keys, self.ids[start : start + self.block], start, False)
            keys.commit(self.block, False)
        return alone, whole, seconds


def in_parts(text: Text, length: int, size: int, blocks: int) -> str:
    """The line of blocks in parts."""
    alone, whole, seconds = text.parts(text.context(length), blocks, size)
    quick, slow = (sorted(one)[len(one) // 2] for one in zip(*seconds, strict=True))
    head = (str(length), f"parts of {size} of {text.block}", f"{1000 * quick:.0f}, whole {1000 * slow:.0f}", "-")
    return f"| {' | '.join((*head, *drifts(alone, whole)))} |"


def drifts(looks: Sequence[Tensor], wanted: Sequence[Tensor]) -> tuple[str, str]:
    """Divergence from the exact looks and share of equal likeliest tokens, means of looks with intervals."""
    pairs = list(zip(looks, wanted, strict=True))
    drift = mean([float(_divergence(*pair)) for pair in pairs])
    same = mean([float((one.argmax(1) == other.argmax(1)).float().mean()) for one, other in pairs])
    share = f"{100 * same.value:.1f} % ({100 * same.low:.0f} to {100 * same.high:.0f})"
    return f"{drift.value:.4f} ({drift.low:.4f} to {drift.high:.4f})", share


def under(keys: KeptKeys, rule: KVCompressor) -> KeptKeys:
    """A copy of exact keys under a rule, which is applied at once."""
    made = copy.deepcopy(keys)
    made.rule = rule
    made.commit(0, True)
    return made


def rows(text: Text, length: int, rules: Sequence[dict[str, Any]], asked: argparse.Namespace) -> list[str]:
    """The lines of one context."""
    exact = text.made_up(length) if asked.made_up else text.context(length)
    made, wanted = list[str](), list[Tensor]()
    for named in ({}, *rules):
        keys = under(exact, build("compressors", named, "kv") if named else KVCompressor())
        size = keys.bytes()
        looks, seconds = text.looks(keys, asked.blocks)
        wanted = wanted or looks
        cells = [str(length), f"`{json.dumps(named)}`" if named else "exact"]
        cells += [
            f"{1000 * sorted(seconds)[len(seconds) // 2]:.0f}",
            f"{size / 1e6:.0f}",
            *(("-", "-") if asked.made_up else drifts(looks, wanted)),
        ]
        made.append(f"| {' | '.join(cells)} |")
        print(made[-1], flush=True)
    return made


def _divergence(found: Tensor, wanted: Tensor) -> Tensor:
    return (wanted.exp() * (wanted - found).nan_to_num()).sum(dim=1).mean()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rules", nargs="*", type=json.loads, metavar="JSON", help="sections of kv")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--scores", default="", help="file of key scores, for kvzap")
    parser.add_argument("--contexts", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--blocks", type=int, default=8, help="looked at behind each context")
    parser.add_argument("--block", type=int, default=0, help="block size; 0: the model's")
    parser.add_argument("--made-up", action="store_true", help="random keys: time and memory alone")
    parser.add_argument("--parts", type=int, default=0, help="also looks at parts of this size")
    asked = parser.parse_args(arguments)
    loaded = load_model(Config().model.model_copy(update={"path": asked.model, "key_scores": asked.scores}))
    ids = torch.tensor(loaded.tokenizer(asked.text.read_text(encoding="utf-8"))["input_ids"])
    text = Text(loaded, ids, asked.block or loaded.meta.block or 8)
    print(f"{HEADER}\n{'|---' * 6}|", flush=True)
    for length in asked.contexts:
        rows(text, length, asked.rules, asked)
        if asked.parts:
            print(in_parts(text, length, asked.parts, asked.blocks), flush=True)


if __name__ == "__main__":
    sys.exit(spoken("kv.py", main))
