# The vendored repositories are pinned, fetched at exactly those commits and never imported by the core.
# Entry points: pytest. A local repository stands in for the real ones.
# The planted faults are a wrong commit and a missing repository.
"""Tests of vendor/fetch.py."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from scripts import script


@pytest.fixture(scope="module")
def fetching(project: Path) -> ModuleType:
    return script(project / "vendor" / "fetch.py")


@pytest.fixture
def upstream(tmp_path: Path) -> tuple[Path, str, str]:
    folder = tmp_path / "upstream"
    commits = []
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    for text in ("old", "new"):
        (folder / "file").write_text(text)
        subprocess.run(["git", "-C", str(folder), "add", "file"], check=True)
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(folder), *identity, "commit", "--quiet", "-m", text], check=True)
        head = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        commits.append(head.stdout.strip())
    return folder, commits[0], commits[1]


def test_the_pins_are_the_two_repositories(fetching: ModuleType, project: Path) -> None:
    pins = {pin.name: pin.commit for pin in fetching.pins(project / "VERSIONS.md")}
    assert pins == {"LLaDA": "570f290", "dInfer": "1ffeb96"}


def test_the_pinned_commit_is_checked_out(
    fetching: ModuleType, upstream: tuple[Path, str, str], tmp_path: Path
) -> None:
    address, old, _ = upstream
    assert fetching.fetch(fetching.Pin("thing", str(address), old[:7]), tmp_path) == ""
    assert (tmp_path / "thing" / "file").read_text() == "old"
    assert fetching.fetch(fetching.Pin("thing", str(address), old[:7]), tmp_path) == ""


def test_a_commit_that_is_not_there_is_named(
    fetching: ModuleType, upstream: tuple[Path, str, str], tmp_path: Path
) -> None:
    problem = fetching.fetch(fetching.Pin("thing", str(upstream[0]), "0" * 40), tmp_path)
    assert "0000000" in problem and "delete" in problem


def test_an_unreachable_repository_is_a_clear_error(fetching: ModuleType, tmp_path: Path) -> None:
    problem = fetching.fetch(fetching.Pin("thing", str(tmp_path / "nowhere"), "1234567"), tmp_path)
    assert "cannot clone" in problem and "internet" in problem


def test_nothing_in_the_package_imports_the_vendor_folder_but_the_engine(project: Path) -> None:
    package = project / "backend" / "src" / "hildanext"
    naming = {p.relative_to(package).as_posix() for p in package.rglob("*.py") if "import dinfer" in p.read_text()}
    assert naming <= {"engines/dinfer.py"}
