# Files plain or packed (.gz, .zst, .bz2, .xz) as streams of bytes, and what a file looks like.
# Entry points: opened(path), DAMAGE, suffix_of(path), looks_like(path).
# A packed file may hold several members or frames; one that breaks off, in any of them, raises one of DAMAGE.
"""Files on disk."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PACKED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError)
BEGINNINGS = (
    (b"\x1f\x8b", "a gzip archive"), (b"\x28\xb5\x2f\xfd", "a Zstandard archive"), (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"), (b"PAR1", "Parquet"), (b"ARROW1", "Arrow"), (b"PK\x03\x04", "a zip archive"),
    (b"%PDF", "a PDF"), (b"SQLite", "an SQLite database"), (b"\x89HDF", "HDF5"), (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"), (b"version https://git-lfs", "a Git LFS pointer: the file itself was not fetched"),
    (b"\x80", "a pickle"), (b"<!DOCTYPE", "HTML"), (b"<html", "HTML"), (b"<?xml", "XML"),
)  # fmt: skip


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked where its name says it is packed."""
    packed = path.suffix.lower()
    unpacked: dict[str, Callable[..., Any]] = {
        ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _Frames, ".zstd": _Frames
    }  # fmt: skip
    with unpacked.get(packed, open)(path, "rb") as file:
        yield io.BufferedReader(file) if packed in unpacked else file


class _Frames(io.RawIOBase):
    def __init__(self, path: Path, mode: str) -> None:
        self._path, self._done, self._broken = path, 0, False
        self._stream = self._start()

    def _start(self) -> Any:
        import pyarrow

        return pyarrow.input_stream(str(self._path), compression="zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            found = self._stream.read(1 if self._broken else len(buffer))
        except OSError as error:
            if error.errno or self._broken:
                raise EOFError(str(error)) from error
            self._read_up_to_the_damage()
            return self.readinto(buffer)
        self._done += len(found)
        buffer[: len(found)] = found
        return len(found)

    def _read_up_to_the_damage(self) -> None:
        self._stream, left, self._broken = self._start(), self._done, True
        while left:
            left -= len(self._stream.read(min(left, 1 << 16)))

    def close(self) -> None:
        self._stream.close()
        super().close()


def suffix_of(path: Path | str) -> str:
    """The ending that tells what a file holds, in lower case, without that of its archive."""
    name = Path(str(path).lower())
    return Path(name.stem).suffix if name.suffix in PACKED else name.suffix


def looks_like(path: Path | str) -> str:
    """What a file's first bytes look like, in a few words."""
    with Path(path).open("rb") as file:
        start = file.read(4096)
    if not start.strip():
        return "an empty file" if not start else "a file of blank lines"
    for beginning, name in BEGINNINGS:
        if start.startswith(beginning):
            return name
    try:
        text = start.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:
            return "binary data, or text that is not UTF-8"
        text = start[: error.start].decode("utf-8-sig").strip()
    if text.startswith(("{", "[")):
        return "JSON"
    first, *more = text.splitlines()
    table = next((mark for mark in ("\t", ",", ";") if mark in first and more and mark in more[0]), None)
    return {"\t": "a table with tabs", ",": "CSV", ";": "CSV with semicolons"}.get(table or "", "plain text")
