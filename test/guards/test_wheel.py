# The wheel, not only the editable install, holds everything the package reads.
# Entry points: pytest.
# The wheel is installed without dependencies into an empty environment that borrows this one's packages.
"""Guard of the built wheel."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from importlib.util import find_spec
from pathlib import Path

import pytest
from readme_renderer import markdown

BUILD = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Path:
    copy = tmp_path_factory.mktemp("source") / "backend"
    tracked = subprocess.run(["git", "ls-files", "backend"], cwd=project, capture_output=True, text=True, check=True)
    for name in tracked.stdout.splitlines():
        target = copy.parent / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((project / name).read_bytes())
    return copy


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([*BUILD, str(out), str(source)], check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.tar.gz"))


def missing(wheel: Path, project: Path) -> set[str]:
    """Tracked files of the package that the wheel lacks."""
    tracked = subprocess.run(["git", "ls-files", "backend/src/hildanext"], cwd=project, capture_output=True, text=True)
    with zipfile.ZipFile(wheel) as archive:
        return {name.removeprefix("backend/src/") for name in tracked.stdout.splitlines()} - set(archive.namelist())


def test_the_wheel_holds_every_tracked_file(wheel: Path, project: Path) -> None:
    assert missing(wheel, project) == set()


def test_an_index_can_take_the_wheel(wheel: Path, project: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = next(name for name in archive.namelist() if name.endswith("METADATA"))
        said = message_from_bytes(archive.read(info))
        licence = archive.read(info.replace("METADATA", "licenses/LICENSE"))
    assert said["License-Expression"] == "MIT" and said["Description-Content-Type"] == "text/markdown"
    assert licence == (project / "LICENSE").read_bytes() == (project / "backend" / "LICENSE").read_bytes()
    assert all(said[name] for name in ("Summary", "Requires-Python", "Keywords", "Author", "Classifier"))
    shown = markdown.render(str(said.get_payload()))
    assert (
        shown is not None and shown.startswith("<h1") and shown.count("<table>") == 1 and "<code>quant</code>" in shown
    )
    assert not re.search(r'(href|src)="(?!http|#)', shown), "a relative link leads nowhere on an index"


def test_the_source_archive_holds_what_the_wheel_is_made_of(wheel: Path, sdist: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, tarfile.open(sdist) as packed:
        held = {name.partition("/src/")[2] for name in packed.getnames() if "/src/" in name}
        wanted = {name for name in archive.namelist() if name.startswith("hildanext/")}
        top = {name.partition("/")[2] for name in packed.getnames()}
    assert wanted <= held and {"LICENSE", "PACKAGE.md", "pyproject.toml"} <= top


def test_the_check_sees_a_missing_file(wheel: Path, project: Path, tmp_path: Path) -> None:
    poorer = tmp_path / "poorer.whl"
    with zipfile.ZipFile(wheel) as full, zipfile.ZipFile(poorer, "w") as archive:
        for name in full.namelist():
            if name != "hildanext/py.typed":
                archive.writestr(name, full.read(name))
    assert missing(poorer, project) == {"hildanext/py.typed"}


def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    binaries = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip", "--python", str(binaries / "python"), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True, env=environment)
    purelib = [str(binaries / "python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(purelib, capture_output=True, text=True, check=True).stdout.strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    where = "import hildanext; print(hildanext.__file__)"
    found = subprocess.run([str(binaries / "python"), "-c", where], capture_output=True, text=True, env=environment)
    assert str(site) in found.stdout
    shown = subprocess.run(
        [str(binaries / "hildanext"), "doctor", "--json"], capture_output=True, text=True, env=environment
    )
    assert shown.returncode == 0, shown.stderr
    if find_spec("lm_eval") is not None:
        shown = subprocess.run(
            [str(binaries / "lm_eval"), "run", "--help"], capture_output=True, text=True, env=environment
        )
        assert shown.returncode == 0 and "--model_args" in shown.stdout, shown.stderr
