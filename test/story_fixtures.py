# Fixtures of the evaluation tests: a random story-world model on disk, loaded, and a quiet context.
# Entry points: story_model, context.
# Random weights: what they write is noise, so tests plant texts where a score must be right.
"""Fixtures over a random story-world model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hildanext.config import Config
from hildanext.config.model import ModelConfig, NewModelConfig
from hildanext.data.tokenizers import storyworld_tokenizer
from hildanext.decoding.request import Request
from hildanext.measure.generation import Completion
from hildanext.measure.task import EvalContext
from hildanext.models.load import load_model
from hildanext.models.meta import HildaMeta
from hildanext.models.save import save_model
from hildanext.progress import Console


@pytest.fixture(scope="session")
def story_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer model over the story world's tokenizer, block size 4."""
    folder = tmp_path_factory.mktemp("story")
    storyworld_tokenizer(folder / "tokenizer")
    shape = NewModelConfig(
        tokenizer=str(folder / "tokenizer"), hidden=32, layers=2, heads=2, kv_heads=1, ffn=48, window=256
    )
    loaded = load_model(ModelConfig(path="new", new=shape))
    return save_model(loaded.denoiser, loaded.tokenizer, folder / "model", HildaMeta(block=4))


@pytest.fixture(scope="session")
def loaded(story_model: Path) -> Any:
    return load_model(ModelConfig(path=str(story_model)))


@dataclass(frozen=True)
class Scripted:
    """A generator that answers from a function of the request."""

    reply: Callable[[Request], str]
    kind: str = "diffusion"
    asked: list[Request] = field(default_factory=list)

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """The scripted replies, one forward for each four tokens."""
        self.asked.extend(requests)
        return [Completion(self.reply(request), (2,) * 8, 2, 0, 0.5, "eos") for request in requests]


@pytest.fixture
def scripted(loaded: Any) -> Callable[[Callable[[Request], str]], EvalContext]:
    """scripted(reply) -> a context whose generator answers reply(request)."""

    def make(reply: Callable[[Request], str]) -> EvalContext:
        return EvalContext(loaded, Config(), Console(quiet=True), Scripted(reply))

    return make
