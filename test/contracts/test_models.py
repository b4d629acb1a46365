# What every kind of model keeps: it says what its models are good for, and refuses a folder that is none of its own.
# Entry points: pytest. A new kind is found by its file; its numbers are tested in test/models.
# The folders it must refuse are an empty one and one with a configuration of nothing.
"""Contract of the kinds of model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hildanext.config.model import ModelConfig
from hildanext.errors import ModelError
from hildanext.models.kind import ModelKind, kind_of
from hildanext.models.load import load_model
from hildanext.models.meta import HildaMeta
from hildanext.registry import build, names

NAMES = names("models")


@pytest.mark.parametrize("name", NAMES)
def test_a_kind_is_the_one_its_metadata_names_and_says_its_uses(name: str) -> None:
    kind = kind_of(HildaMeta(kind=name))
    assert isinstance(kind, ModelKind) and kind == build("models", {"type": name})
    assert "decode" in kind.uses and kind.uses <= {"train", "decode", "export"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", ["", "{}"])
def test_a_folder_that_is_no_model_is_refused_on_one_line(name: str, content: str, loaded: Any, tmp_path: Path) -> None:
    loaded.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "hildanext.json").write_text(HildaMeta(kind=name).text())
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError) as caught:
        load_model(ModelConfig(path=str(tmp_path)))
    assert len(str(caught.value).splitlines()) == 1


def test_a_planted_kind_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match="no_such_kind"):
        kind_of(HildaMeta(kind="no_such_kind"))
