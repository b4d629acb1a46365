# The models a server may serve, before one of them is loaded: name, configuration, bytes, state of the folder.
# Entry points: Entry, listed, room_of.
# serve.models empty is one entry, model.path, whose bytes nobody asks for: what serves one model reckons nothing.
"""Entries of the fleet."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hildanext.config import Config
from hildanext.config.places import with_values
from hildanext.errors import ConfigError
from hildanext.models.load import NEW, name_of, place
from hildanext.models.preflight import estimate

NAMED = re.compile(r"([A-Za-z0-9][\w.:-]{0,99}(?:/[\w.:-]{1,100})?)=(.+)", re.S)
WINDOW = 4096
Signature = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Entry:
    """One model. name: what requests call it, "" for whatever its engine says; config: of this model alone; needs:
    bytes of weights and at most of keys, values and intermediate results, 0 unknown."""

    name: str
    config: Config
    needs: int = 0

    @property
    def path(self) -> str:
        """Its model.path."""
        return self.config.model.path

    def signature(self) -> Signature:
        """(file, bytes, time of the last change in ns) of its folder, sorted; empty where there is none."""
        if self.path == NEW:
            return ()
        folder = place(self.path)
        files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
        facts = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
        return tuple((name, fact.st_size, fact.st_mtime_ns) for name, fact in facts)


def listed(config: Config) -> list[Entry]:
    """The models of a configuration; the first is the one that requests get who name none. ConfigError for two of one
    name; ModelError for a folder that is none; both before anything is loaded."""
    named = [_split(text) for text in config.serve.models]
    if len(named) < 2:
        values = {"model.path": named[0][1], "serve.models": ()} if named else {}
        values |= {"serve.name": named[0][0]} if named and named[0][0] else {}
        return [Entry("", with_values(config, values) if values else config)]
    if config.serve.name:
        raise ConfigError("serve.name: names one model, and there are several; write --model NAME=FOLDER")
    found = [(name or name_of(place(path)), path) for name, path in named]
    twice = [name for name, count in Counter(name for name, _ in found).items() if count > 1]
    if twice:
        raise ConfigError(f"serve.models: two models are called {twice[0]!r}; give one a name, as in NAME=FOLDER")
    return [_entry(config, name, path) for name, path in found]


def _split(text: str) -> tuple[str, str]:
    match = NAMED.fullmatch(text)
    return (match[1], match[2]) if match and not Path(text).exists() else ("", text)


def _entry(config: Config, name: str, path: str) -> Entry:
    own = with_values(config, {"model.path": path, "serve.name": name, "serve.models": ()})
    return Entry(name, own, int(estimate(own, WINDOW, training=False)["total"]))


def room_of(config: Config, entries: list[Entry]) -> int:
    """Bytes that models loaded together may need. ConfigError for a model that exceeds them alone."""
    limit = config.serve.model_bytes or int(estimate(entries[0].config, WINDOW, training=False)["limit"])
    for entry in entries:
        if entry.needs > limit:
            raise ConfigError(
                f"serve.models: {entry.name} needs {entry.needs / 2**30:.2f} GiB, models may take"
                f" {limit / 2**30:.2f} (serve.model_bytes, else model.max_vram_pct of the memory); raise"
                " it, or lower decode.kv_bytes and decode.prefix_bytes, which are counted whole"
            )
    return limit
