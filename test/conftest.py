# Fixtures of the whole suite: real assets, tiny random models.
# Entry points: assets, random_model, project.
# Threads are set before torch is imported: two cores are shared with other processes.
"""Shared fixtures."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest_plugins = ["story_fixtures"]

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: cores take file after file, and none of these should be the last one running."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the garbage collector need not look through all of torch again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real files beside the checkout (../shared/assets, or HILDANEXT_ASSETS); skips where they are missing."""
    folder = Path(os.environ.get("HILDANEXT_ASSETS", ROOT.parent / "shared" / "assets"))
    if not folder.is_dir():
        pytest.skip(f"real assets are not beside this checkout ({folder.name}); set HILDANEXT_ASSETS")
    return folder


def _config(family: str, **changes: Any) -> Any:
    import transformers

    common = {
        "vocab_size": 67, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "attention_dropout": 0.0, "use_cache": True,
    }  # fmt: skip
    extra: dict[str, dict[str, Any]] = {
        "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
        "qwen2": {},
        "llama": {},
        "mistral": {"sliding_window": None, "head_dim": 8},
        "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    }
    names = {
        "qwen3": "Qwen3Config", "qwen2": "Qwen2Config", "llama": "LlamaConfig", "mistral": "MistralConfig",
        "qwen3_moe": "Qwen3MoeConfig",
    }  # fmt: skip
    return getattr(transformers, names[family])(**(common | extra[family] | changes))


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Any]:
    """random_model(family="qwen3", seed=0, dtype=None, **config changes) -> an eval-mode Hugging Face causal LM."""

    def make(family: str = "qwen3", seed: int = 0, dtype: Any = None, **changes: Any) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(_config(family, **changes), attn_implementation="sdpa")
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.15)
        return model.to(dtype or torch.float32).eval()

    return make
