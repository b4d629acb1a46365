# Decoding on the device: eager and with CUDA graphs, one request and many, beside the AR model, against the bandwidth.
# Entry points: decoding, bandwidth.
# Weights are random and the policy scripted, so these are speeds and no texts; that graphs write what eager forwards
# write is checked on the same requests.
"""Decoding measurements of the device benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from hildanext.bench.device.sizes import Sizes, network_of, seconds_of
from hildanext.config import Config
from hildanext.decoding.driver import Driver
from hildanext.decoding.engine import BlockEngine
from hildanext.decoding.graphs import Graphed, Replay, cuda_capture
from hildanext.decoding.request import Request, Result
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.meta import HildaMeta

PER_FORWARD = 4
COPY = 1 << 28
Capture = Callable[[Replay], Replay]


def bandwidth(device: torch.device, count: int = COPY) -> float:
    """Bytes per second that the device's memory moves in a copy of `count` float32 values, read and written."""
    source = torch.zeros(count, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / seconds_of(lambda: target.copy_(source), 5, device)


def decoding(config: Config, sizes: Sizes, device: torch.device, capture: Capture = cuda_capture) -> dict[str, Any]:
    """tokens/s, forwards/s and, for one request, the share of the bandwidth that reading the weights takes: the AR
    model (our engine at block 1) and every block size, eager and captured, alone and sizes.together at once; and the
    share of texts that are equal eager and captured, in float32 too."""
    found: dict[str, Any] = {"bandwidth": bandwidth(device, COPY if device.type == "cuda" else 1 << 16)}
    for dtype in (torch.bfloat16, torch.float32):
        model = network_of(sizes).to(device, dtype).eval()
        part: dict[str, Any] = {}
        for block in (1, *sizes.blocks):
            for rows in (1, sizes.together) if dtype == torch.bfloat16 else (1,):
                name = f"{'AR' if block == 1 else f'block {block}'}, {rows} at once"
                part[name] = _both(model, (config, sizes, capture), block, rows)
                if rows == 1:
                    _against(part[name], _read(model), found["bandwidth"])
        found[str(dtype).removeprefix("torch.")] = part
    return found


def _read(model: Any) -> int:
    # a forward reads all matrices once; of an embedding that is no head it reads a few rows
    apart = model.get_input_embeddings().weight is not model.get_output_embeddings().weight
    unread = model.get_input_embeddings().weight.numel() if apart else 0
    return int((sum(one.numel() for one in model.parameters()) - unread) * model.dtype.itemsize)


def _against(found: dict[str, Any], read: int, moved: float) -> None:
    for form in ("eager", "captured"):
        found[form]["share of bandwidth"] = found[form]["forwards_per_second"] * read / moved


def _both(model: Any, what: tuple[Config, Sizes, Capture], block: int, rows: int) -> dict[str, Any]:
    config, sizes, capture = what
    shift = "clean" if block == 1 else "none"
    plain = HFDenoiser(model, sizes.vocabulary - 1, shift=shift).eval()
    captured = Graphed(plain, rows, sizes.prompt + sizes.new + 2 * max(sizes.blocks), capture)
    texts, found = {}, dict[str, Any]()
    for name, denoiser in (("eager", plain), ("captured", captured)):
        _decoded(denoiser, config, sizes, (block, rows))  # warm-up, and what is captured is captured
        started = time.perf_counter()
        results, forwards = _decoded(denoiser, config, sizes, (block, rows))
        seconds = time.perf_counter() - started
        texts[name] = [result.token_ids for result in results]
        tokens = sum(map(len, texts[name]))
        found[name] = {"tokens_per_second": tokens / seconds, "forwards_per_second": forwards / seconds}
    same = sum(one == other for one, other in zip(texts["eager"], texts["captured"], strict=True))
    times = found["captured"]["tokens_per_second"] / found["eager"]["tokens_per_second"]
    return found | {"captured of eager": times, "equal texts": same / rows, "graphs": captured.captured}


def _decoded(denoiser: Any, config: Config, sizes: Sizes, job: tuple[int, int]) -> tuple[Sequence[Result], int]:
    block, rows = job
    engine = BlockEngine(SimpleNamespace(denoiser=denoiser, tokenizer=None, meta=HildaMeta()), _room(config, rows))
    policy = {"type": "static_quota", "steps": max(1, block // PER_FORWARD)}
    asks = [
        Request.of(
            prompt_ids=tuple((7 * i + 31 * row) % (sizes.vocabulary - 1) for i in range(sizes.prompt)),
            max_new_tokens=sizes.new, ignore_eos=True, block=block, policy=policy,
        )
        for row in range(rows)
    ]  # fmt: skip
    return Driver(engine).run(asks), engine.forwards


def _room(config: Config, rows: int) -> Any:
    return config.decode.model_copy(update={"requests": rows, "step_tokens": 8192})
