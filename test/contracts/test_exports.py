# What every export keeps: a whole folder of the files it lists, nothing beside it touched, nothing older left.
# Entry points: pytest. A new export is found by its file.
# The model is a random Qwen3 with a vocabulary as large as the largest any format asks for.
"""Contract of the exports."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hildanext.data.tokenizers import storyworld_tokenizer
from hildanext.errors import HildaError
from hildanext.models.denoiser import HFDenoiser
from hildanext.models.load import Loaded
from hildanext.models.meta import HildaMeta
from hildanext.registry import Plugin, build, names

NAMES = names("exports")


@pytest.fixture(scope="module")
def exported(random_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A child of block 4 that every format can hold."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    model = random_model("qwen3", vocab_size=151_680, rope_parameters=rope)
    tokenizer = storyworld_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    meta = HildaMeta(mask_id=3, block=4)
    return Loaded(HFDenoiser(model, 3), tokenizer, meta, None, torch.float32, "", torch.device("cpu"))


def files_below(folder: Path) -> list[str]:
    """Every file, as a path from the folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _refuses(export: Any, loaded: Loaded, out: Path) -> bool:
    try:
        export.write(loaded, out)
    except HildaError as error:
        return "notes.txt" in str(error) and (out / "notes.txt").read_text() == "mine"
    return False


def broken_promises(export: Any, loaded: Loaded, place: Path) -> list[str]:
    """What is wrong with an export written twice into place/out, beside a file of somebody else's."""
    (place / "beside.txt").write_text("mine")
    listed = export.write(loaded, place / "out")
    found = [] if sorted(listed) == files_below(place / "out") else ["the files listed are not those written"]
    again = export.write(loaded, place / "out")
    found += [] if again == listed == files_below(place / "out") else ["a second time gives other files"]
    (place / "out" / "notes.txt").write_text("mine")
    found += [] if _refuses(export, loaded, place / "out") else ["a file of somebody else's is removed"]
    beside = sorted(path.name for path in place.iterdir())
    return found + ([] if beside == ["beside.txt", "out"] else [f"left beside the folder: {beside}"])


@pytest.mark.parametrize("name", NAMES)
def test_an_export_is_the_folder_it_lists_and_nothing_else(name: str, exported: Loaded, tmp_path: Path) -> None:
    assert broken_promises(build("exports", {"type": name}), exported, tmp_path) == []


@pytest.mark.parametrize("name", NAMES)
def test_an_export_leaves_the_model_as_it_was(name: str, exported: Loaded, tmp_path: Path) -> None:
    before = exported.denoiser.head().detach().clone()
    build("exports", {"type": name}).write(exported, tmp_path / "out")
    assert torch.equal(exported.denoiser.head(), before) and exported.meta == HildaMeta(mask_id=3, block=4)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_a_format_cannot_hold_is_refused_before_anything_is_written(
    name: str, loaded: Any, tmp_path: Path
) -> None:
    try:
        build("exports", {"type": name}).write(loaded, tmp_path / "out")
    except HildaError as error:
        assert len(str(error).splitlines()) == 1 and not list(tmp_path.iterdir())
    else:
        assert files_below(tmp_path / "out")


def test_a_planted_export_that_lists_too_little_and_removes_what_is_there_is_seen(
    exported: Loaded, tmp_path: Path
) -> None:
    class Careless(Plugin):
        """Writes two files and names one."""

        def write(self, loaded: Any, folder: Path) -> list[str]:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            (folder / "a").write_text("a")
            (folder / "b").write_text("b")
            return ["a"]

    assert broken_promises(Careless(), exported, tmp_path) == [
        "the files listed are not those written", "a second time gives other files",
        "a file of somebody else's is removed",
    ]  # fmt: skip
