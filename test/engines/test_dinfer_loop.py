# dInfer's own decoding loop over a tiny Qwen3 gives the tokens of our engine; and the shim between them is exact.
# Entry points: pytest. The loop's tests skip, and say so, where dInfer's source tree is not there.
# Alignment: dInfer rounds prompt plus length up to whole blocks, so the lengths here are chosen whole.
"""dInfer's decoding loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from engines.qwen_shim import Shim, dinfer_modules
from engines.toy import toy_folder
from torch import Tensor

from hildanext.config import Config
from hildanext.decoding.request import Request
from hildanext.engines.choose import choose
from hildanext.engines.opening import OpenEngine
from hildanext.progress import Console

MASK, BLOCK = 3, 8
CASES = [(length, tau) for length in (1, 5, 8, 13, 16, 27) for tau in (0.05, 0.2, 0.6, 1.0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, random_model: Callable[..., Any]) -> Path:
    return toy_folder(tmp_path_factory.mktemp("toy"), random_model)


@pytest.fixture(scope="module")
def shim(folder: Path) -> Shim:
    from transformers import AutoModelForCausalLM

    return Shim(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval(), MASK)


@pytest.fixture(scope="module")
def ours(folder: Path) -> OpenEngine:
    config = Config.model_validate(
        {
            "model": {"path": str(folder), "dtype": "float32", "device": "cpu"},
            "decode": {"block": BLOCK, "tau_edit": None, "cache": False},
            "serve": {"engines": [{"type": "transformers"}]},
        }
    )
    return OpenEngine(*choose(config, Console(quiet=True)))


def prompt(length: int) -> list[int]:
    return [(7 * place + length) % 50 + 4 for place in range(length)]


def new_tokens(length: int) -> int:
    return 3 * BLOCK - length % BLOCK


@pytest.mark.parametrize(("length", "tau"), CASES)
def test_dinfers_loop_gives_the_tokens_of_our_engine(
    project: Path, monkeypatch: pytest.MonkeyPatch, shim: Shim, ours: OpenEngine, length: int, tau: float
) -> None:
    dinfer = dinfer_modules(project, monkeypatch)
    decoder = dinfer.parallel_strategy.ThresholdParallelDecoder(0.0, tau, mask_id=MASK, eos_id=-1)
    loop = dinfer.generate_uniform.BlockDiffusionLLM(
        shim, decoder, dinfer.utils.BlockIteratorFactory(True, use_block_diffusion=True),
        cache_factory=dinfer.utils.KVCacheFactory("prefix", is_bd_model=True), early_stop=False, maximum_unroll=1,
        expected_tpf=1, backend="vllm",
    )  # fmt: skip
    theirs = loop.generate(torch.tensor([prompt(length)]), gen_length=new_tokens(length), block_length=BLOCK)
    request = Request.of(
        prompt_ids=tuple(prompt(length)), max_new_tokens=new_tokens(length), tau_mask=tau, tau_edit=None,
        ignore_eos=True,
    )  # fmt: skip
    assert theirs[0].tolist() == [*prompt(length), *ours.generate(request).token_ids]
    assert loop.num_forwards >= 3


@dataclass
class Cached:
    """Keys and values of every layer [layers, 2, b, heads, K, width], with room for the block to come."""

    data: Tensor

    def get_keys(self, layer: int) -> Tensor:
        return self.data[layer][0]

    def update(self, keys: Tensor, values: Tensor, layer: int, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        old = self.data[layer]
        return (
            old[0].slice_scatter(keys, dim=2, start=place[0], end=place[1]),
            old[1].slice_scatter(values, dim=2, start=place[0], end=place[1]),
        )


def block_causal(length: int) -> Tensor:
    number = torch.arange(length) // BLOCK
    return (number[:, None] >= number[None, :])[None]


@torch.no_grad()
def test_the_shim_gives_with_a_cache_what_it_gives_without(shim: Shim) -> None:
    ids = torch.tensor([prompt(3 * BLOCK)])
    positions = torch.arange(3 * BLOCK)[None]
    whole = shim(ids, attention_mask=block_causal(3 * BLOCK), position_ids=positions).logits
    first = shim(ids[:, :BLOCK], position_ids=positions[:, :BLOCK]).past_key_values
    room = torch.stack(first).reshape(-1, 2, *first[0].shape)
    cache = Cached(torch.nn.functional.pad(room, (0, 0, 0, 2 * BLOCK)))
    rest = shim(
        ids[:, BLOCK:], attention_mask=block_causal(3 * BLOCK)[:, BLOCK:], position_ids=positions[:, BLOCK:],
        past_key_values=cache, replace_position=(BLOCK, 3 * BLOCK),
    )  # fmt: skip
    seen = torch.arange(whole.shape[-1]) != MASK
    torch.testing.assert_close(rest.logits[..., seen], whole[:, BLOCK:, seen], atol=1e-5, rtol=1e-5)
    assert bool((rest.logits[..., MASK] == -torch.inf).all()) and len(rest.past_key_values) == len(first)


@torch.no_grad()
def test_the_shim_reads_its_cache(shim: Shim) -> None:
    ids, positions = torch.tensor([prompt(2 * BLOCK)]), torch.arange(2 * BLOCK)[None]
    first = shim(ids[:, :BLOCK], position_ids=positions[:, :BLOCK]).past_key_values
    room = torch.nn.functional.pad(torch.stack(first).reshape(-1, 2, *first[0].shape), (0, 0, 0, BLOCK))
    found = [
        shim(
            ids[:, BLOCK:], position_ids=positions[:, BLOCK:], past_key_values=Cached(data),
            replace_position=(BLOCK, 2 * BLOCK),
        ).logits[..., 4:]
        for data in (room, torch.zeros_like(room))
    ]  # fmt: skip
    assert not torch.allclose(*found, atol=1e-3)


def test_without_the_source_tree_the_reason_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HILDANEXT_DINFER", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=r"vendor/fetch.py dInfer, or set HILDANEXT_DINFER"):
        dinfer_modules(tmp_path, monkeypatch)
