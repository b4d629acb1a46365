# Files and folders that appear whole: written beside their place, renamed into it, replaced only where they are ours.
# Entry points: write_atomic, replacing, swap_in, hold, require_replaceable, whole, clear, fingerprints, damage.
# What is being written lies under fixed names (.NAME.tmp, .hildanext-writing/NAME) behind a lock that dies with its
# process; the next write there removes what a killed one left. A finished folder lists its files in .hildanext.
"""Writing to disk without losing anything."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from hildanext.errors import FULL, HildaError, RunError, cure

try:
    import fcntl
except ImportError:  # Windows: no lock, and a name of its own for every writer of a file
    fcntl = None  # type: ignore[assignment]

RECORD = ".hildanext"
READ_ANEW = 16 << 30
WRITING, REPLACED = ".hildanext-writing", ".hildanext-replaced"
UNWRITABLE = (*FULL, errno.EFBIG, errno.EROFS, errno.EBUSY)
MODEL = (
    "config.json", "generation_config.json", "hildanext.json", "*.safetensors", "*.safetensors.index.json",
    "tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "chat_template.*", "README.md", "dllm.yaml",
)  # fmt: skip
UNRECORDED = {
    "model": ("hildanext.json", MODEL),
    "checkpoint": ("trainer/state.json", (*MODEL, "trainer/*")),
    "data set": ("manifest.json", ("manifest.json", "*.jsonl")),
    "shards": ("manifest.json", ("manifest.json", "*/manifest.json", "*/*.bin", "tokenizer/*")),
}
"""By what a folder holds: the file that marks one written before folders were recorded, and the files it may have."""


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file by write-then-rename: a reader sees the old file or the new one, never half of either."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    own = "" if fcntl else f".{os.getpid()}.{threading.get_ident()}"
    with _alone(temporary := path.with_name(f".{path.name}{own}.tmp")) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        if fcntl is None:
            file.close()
        temporary.replace(path)


@contextmanager
def _alone(temporary: Path) -> Iterator[BinaryIO]:
    while True:
        file = temporary.open("ab")
        _lock(file.fileno(), wait=True)
        with suppress(FileNotFoundError):
            if _is(temporary, file.fileno()):
                break
        file.close()
    try:
        file.truncate(0)
        yield file
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        file.close()


def _is(path: Path, handle: int) -> bool:
    return fcntl is None or os.path.samestat(path.stat(), os.fstat(handle))


def _lock(handle: int, wait: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks
    return True


_HELD = weakref.WeakSet[BinaryIO]()
if fcntl:  # a worker that outlives its killed parent must not keep the lock
    os.register_at_fork(after_in_child=lambda: [file.close() for file in tuple(_HELD)])


def hold(path: Path) -> BinaryIO | None:
    """A file that is locked until it is closed or this process ends, however; None while another one holds it."""
    file = path.open("ab")
    if not _lock(file.fileno(), wait=False):
        file.close()
        return None
    _HELD.add(file)
    return file


@contextmanager
def replacing(target: Path, holds: str = "model") -> Iterator[Path]:
    """A new empty folder that takes the target's place when the block ends well; otherwise the target stays as it was
    and the new folder is removed. holds: what it is, in a word or two. HildaError, before anything is written, where
    the target may not be replaced (see require_replaceable) or is being written by another process."""
    target = target.resolve()
    require_replaceable(target, holds)
    fresh = _place(target)
    with _held(fresh) as ours:
        if not ours:
            raise HildaError(f"{target}: another process is writing it; wait for it or name another folder")
        try:
            yield fresh
            swap_in(fresh, target, holds)
        except BaseException as error:
            shutil.rmtree(fresh, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in UNWRITABLE:
                advice = f"what was there stays; {cure(error, 'name another folder')}"
                raise RunError(f"{target}: cannot be written ({error.strerror}); {advice}") from error
            raise
        finally:
            _remove_empty(fresh.parent)


def _place(target: Path) -> Path:
    fresh = target.parent / WRITING / target.name
    try:
        clear(target.parent)
        fresh.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        advice = cure(error, "name another folder")
        raise HildaError(f"{target}: cannot be written ({error.strerror}); {advice}") from error
    return fresh


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    handle = os.open(folder, os.O_RDONLY) if fcntl else -1
    try:
        yield _lock(handle, wait=False)
    finally:
        if handle >= 0:
            os.close(handle)


def _by_umask(folder: Path) -> None:
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o666
    probe.unlink()
    for path in folder.rglob("*.safetensors"):  # safetensors writes them for the owner alone
        path.chmod(mode)


def swap_in(fresh: Path, target: Path, holds: str = "model") -> None:
    """Record the files of a finished folder and rename it to `target`; a folder of that name is renamed away first and
    then removed. HildaError where it may not be replaced."""
    require_replaceable(target, holds)
    _by_umask(fresh)
    files = sorted({*_files(fresh), RECORD})
    write_atomic(fresh / RECORD, json.dumps({"holds": holds, "files": files}, indent=1) + "\n")
    old = target.parent / REPLACED / target.name
    _restore(old)
    if not target.exists():
        fresh.rename(target)
        return
    old.parent.mkdir(exist_ok=True)
    with _held(target):
        target.rename(old)
        try:
            fresh.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _remove_empty(old.parent)


def _restore(old: Path) -> None:
    target = old.parent.parent / old.name
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def clear(parent: Path) -> None:
    """Remove what killed writes left in a folder, and put back what was just being replaced. What another process is
    writing there stays."""
    for place, undo in ((parent / WRITING, partial(shutil.rmtree, ignore_errors=True)), (parent / REPLACED, _restore)):
        for left in sorted(place.iterdir()) if place.is_dir() else ():
            with _held(left) as ours:
                if ours:
                    undo(left)
        _remove_empty(place)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def require_replaceable(target: Path, holds: str = "model") -> None:
    """HildaError unless the target is free, an empty folder, or a folder of the same kind that this program wrote and
    nothing else lies in: what stands there would be removed."""
    target = target.resolve()
    if not target.name:
        raise HildaError(f"{target}: cannot be replaced; name a folder below it")
    if target.exists() and not target.is_dir():
        raise HildaError(f"{target}: a file stands there; name another folder")
    if not target.exists() or not any(target.iterdir()):
        return
    found = _foreign(target, holds)
    if (record := _record(target)) and record["holds"] != holds:
        raise HildaError(f"{target}: holds {record['holds']}, not {holds}; nothing was touched, name another folder")
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise HildaError(
            f"{target}: holds {found[0]}{more}, which hildanext did not write there and would remove; nothing was"
            " touched, name another folder or move that away"
        )


def _foreign(folder: Path, holds: str) -> list[str]:
    record = _record(folder)
    if record:
        return sorted(_files(folder) - set(record["files"]))
    mark, own = UNRECORDED.get(holds, ("", ()))
    if not mark or not (folder / mark).is_file():
        return sorted(path.name for path in folder.iterdir())
    return sorted(name for name in _files(folder) if not any(_matches(name, pattern) for pattern in own))


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("/"), pattern.split("/")
    deeper = pattern.endswith("/*") and len(parts) > len(wanted)
    parts = parts[: len(wanted)] if deeper else parts
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        return {"holds": str(record["holds"]), "files": [str(name) for name in record["files"]]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def whole(folder: Path, holds: str = "model") -> bool:
    """Whether the folder was finished by this program as `holds` and none of its files has gone since."""
    record = _record(folder)
    return bool(record) and record["holds"] == holds and set(record["files"]) <= _files(folder)


def _files(folder: Path) -> set[str]:
    found = set()
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if Path(place, name).is_symlink()]
        found |= {Path(place, name).relative_to(folder).as_posix() for name in (*files, *links)}
    return found


def fingerprints(folder: Path, skip: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """{path from the folder: {"bytes", "sha256"}} of every file but the record and those to skip, by which damage()
    knows them again."""
    return {name: _fingerprint(folder / name) for name in sorted(_files(folder) - {RECORD, *skip})}


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def damage(folder: Path, known: Mapping[str, Mapping[str, Any]], kept_in: str) -> str:
    """What is wrong with the first file that is not as its fingerprint, kept in the file `kept_in`, says; "" where all
    are. Sizes are compared first, then contents; a file above 16 GiB older than `kept_in` is not read again."""
    sizes = {name: path.stat().st_size if (path := folder / name).is_file() else -1 for name in known}
    for name, size in sizes.items():
        if size != known[name]["bytes"]:
            return (
                f"{name} has {size} bytes, {known[name]['bytes']} were written" if size >= 0 else f"{name} is missing"
            )
    written = (folder / kept_in).stat().st_mtime_ns
    for name, size in sizes.items():
        if size > READ_ANEW and (folder / name).stat().st_mtime_ns <= written:
            continue
        if _fingerprint(folder / name)["sha256"] != known[name]["sha256"]:
            return f"{name} is not what was written (its SHA-256 differs)"
    return ""
