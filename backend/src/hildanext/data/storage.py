# Files and folders wherever fsspec reaches (s3://, gs://, file:// ...), and what is kept of them on this machine.
# Entry points: is_remote, joined, mirror; read, write, put, at_hand, listed, names_in, removed; written, fetched.
# A folder is published file by file, the list of its files with their digests last: what has no list is not there yet.
# A fetched folder lies in $HILDANEXT_CACHE (else ~/.cache/hildanext) under the digest of its list, checked each time.
"""Object storage."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from hildanext.disk import damage, fingerprints, hold, replacing
from hildanext.errors import DataError, first_line

SCHEME = re.compile(r"[A-Za-z][\w+.-]*://")
LIST = ".hildanext-objects.json"
"""The list of a published folder: {path: {"bytes", "sha256"}}; written last, and so the mark of a whole one."""


def is_remote(place: Path | str) -> bool:
    """Whether it is a place for fsspec (scheme://...) and no path."""
    return bool(SCHEME.match(str(place)))


def joined(place: Path | str, *parts: str) -> str:
    """A place below another."""
    return "/".join((str(place).rstrip("/"), *parts)) if is_remote(place) else str(Path(place, *parts))


def cache_folder() -> Path:
    """Where copies of remote files are kept."""
    return Path(os.environ.get("HILDANEXT_CACHE") or Path.home() / ".cache" / "hildanext")


def mirror(place: Path | str) -> Path:
    """The place itself, or where this machine builds what goes to a remote one."""
    if not is_remote(place):
        return Path(place)
    above, _, name = str(place).rstrip("/").rpartition("/")
    return cache_folder() / "building" / hashlib.sha256(above.encode()).hexdigest()[:16] / name


def _opened(place: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{place}: {first_line(error)}; pip install 'hildanext[cluster]' brings s3, others their own package"
        ) from None
    system.invalidate_cache()
    return system, path


@contextmanager
def _said(place: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{place}: is not there; check the place") from None
    except Exception as error:  # each storage has errors of its own
        if isinstance(error, DataError):
            raise
        raise DataError(f"{place}: cannot be reached ({type(error).__name__}: {first_line(error)})") from error


def read(place: Path | str, start: int | None = None, stop: int | None = None) -> bytes:
    """The bytes [start, stop) of a file. DataError where it is not there."""
    with _said(str(place)):
        system, path = _opened(str(place))
        found: bytes = system.cat_file(path, start=start, end=stop)
        return found


def write(place: Path | str, content: bytes) -> None:
    """A whole file at once: readers see all of it or nothing."""
    with tempfile.TemporaryDirectory() as own:
        file = Path(own) / "file"
        file.write_bytes(content)
        put(file, place)


def put(file: Path, place: Path | str) -> None:
    """Copy a file of this machine to a place; it appears there whole."""
    with _said(str(place)):
        if is_remote(place) and not str(place).startswith("file:"):
            system, path = _opened(str(place))
            system.put_file(str(file), path)
            return
        target = Path(str(place).removeprefix("file://"))
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(f".{target.name}.{os.getpid()}.put")
        shutil.copyfile(file, fresh)
        fresh.replace(target)


def names_in(place: Path | str) -> set[str]:
    """The names of the files right in a folder; none where there is no folder."""
    with _said(str(place)):
        system, path = _opened(str(place))
        if not system.isdir(path):
            return set()
        return {PurePosixPath(name).name for name in system.ls(path, detail=False)}


def listed(place: str) -> list[tuple[str, int, int]]:
    """(place, bytes, time of change in ns) of the file, or of every file below the folder, sorted; hidden ones left
    out. DataError where there is none."""
    with _said(place):
        system, path = _opened(place)
        if system.isfile(path):
            found = {path: system.info(path)}
        else:
            found = system.find(path, detail=True)
        shown = sorted((name for name in found if not _hidden(name[len(path) :])), key=PurePosixPath)
        return [(system.unstrip_protocol(name), *_facts(found[name])) for name in shown]


def _hidden(below: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in below.split("/") if part)


def _facts(info: dict[str, Any]) -> tuple[int, int]:
    changed = info.get("LastModified") or info.get("mtime") or info.get("created") or 0
    seconds = changed.timestamp() if hasattr(changed, "timestamp") else float(changed)
    return int(info["size"]), round(seconds * 1e9)


@contextmanager
def at_hand(place: str) -> Iterator[Path]:
    """The file itself, or a copy of a remote one that lasts as long as the block. A copy keeps the name."""
    if not is_remote(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="hildanext-") as own:
        copy = Path(own) / PurePosixPath(place).name
        with _said(place):
            system, path = _opened(place)
            system.get_file(path, str(copy))
        yield copy


@contextmanager
def written(place: str, holds: str) -> Iterator[Path]:
    """As disk.replacing for a path; for a remote place, which is asked before anything is built, the folder is built on
    this machine and then published."""
    if is_remote(place):
        names_in(place)
    with replacing(mirror(place), holds) as folder:
        yield folder
    if is_remote(place):
        publish(mirror(place), place)
        shutil.rmtree(mirror(place))


def publish(folder: Path, place: str) -> None:
    """Put a finished folder where it belongs. The old list goes first and the new one comes last, so that no reader
    takes a mixture for whole; a file of the old one that is not written again stays, unlisted."""
    known = fingerprints(folder)
    with _said(place):
        system, path = _opened(joined(place, LIST))
        if system.exists(path):
            system.rm_file(path)
    for name in known:
        put(folder / name, joined(place, name))
    write(joined(place, LIST), json.dumps(known, indent=1).encode())


def fetched(place: Path | str) -> Path:
    """The folder itself, or the copy of a published one in the cache, every file of it as its digest says. DataError
    where nothing was published there, or what arrives is not what was."""
    return _kept(str(place)) if is_remote(place) else Path(place)


@lru_cache(maxsize=8)
def _kept(place: str) -> Path:
    raw = read(joined(place, LIST))
    known: dict[str, dict[str, Any]] = json.loads(raw)
    folder = cache_folder() / "fetched" / hashlib.sha256(place.encode() + raw).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    while (lock := hold(folder / ".lock")) is None:
        time.sleep(0.05)
    with lock:
        (folder / LIST).write_bytes(raw)
        for name, facts in known.items():
            if not damage(folder, {name: facts}, LIST):
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"") if not facts["bytes"] else _get(joined(place, name), folder / name)
            if wrong := damage(folder, {name: facts}, LIST):
                raise DataError(f"{place}: {wrong}; what lies there is not what was published, write it again")
    return folder


def _get(place: str, to: Path) -> None:
    with at_hand(place) as copy:
        shutil.copyfile(copy, to)


def removed(place: Path | str) -> None:
    """Remove a folder and what is in it, if it is there."""
    with _said(str(place)):
        system, path = _opened(str(place))
        if system.exists(path):
            system.rm(path, recursive=True)
