# What a request may name on this machine: paths within the project's data, models and runs folders, and nothing else.
# Entry points: Confinement (file, resolved), job_id.
# A value is checked where it will be used, links followed: a link that leads out is refused. What is written to may
# neither be one of the folders, nor hold one, nor lie in a run.
"""Confinement of requests to the project's folders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hildanext.api.replies import ApiError
from hildanext.config import Config
from hildanext.config.for_command import command_config
from hildanext.data.storage import is_remote
from hildanext.registry import plugin_problems

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
HUB_NAME = re.compile(r"(hub:)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)((/[\w.-]+)?(:[\w.-]+)?)")
HUB_PLACES = frozenset({"data.sources.dataset", "eval.tasks.path"})
"""Places that are read as a name on a hub where no folder is meant; everywhere else a value is a path or a word."""
OUTPUTS = frozenset({"answer.output", "export.output", "merge.output"})
FREE_TEXT = frozenset({"description", "prompts", "ask", "pattern"})
OUTSIDE = "outside the project's data, models and runs folders"


def job_id(text: str) -> str:
    """The id, if it is one. ApiError 404 otherwise."""
    if not JOB_ID.fullmatch(text):
        raise ApiError(404, "jobs: no job of that id")
    return text


@dataclass(frozen=True)
class Confinement:
    """The server's own configuration decides the folders and what else is trusted."""

    config: Config

    @property
    def roots(self) -> tuple[Path, ...]:
        """The folders requests may name, links resolved."""
        paths = self.config.paths
        return tuple(Path(folder).resolve() for folder in (paths.data, paths.models, paths.runs))

    def inside(self, text: str) -> bool:
        """Whether a path, its links followed, lies within the folders; what begins with ~ or s3:// does not."""
        if text.startswith("~") or is_remote(text):
            return False
        try:
            path = Path(text).resolve()
        except (OSError, ValueError, RuntimeError):
            return False
        return any(path.is_relative_to(root) for root in self.roots)

    def file(self, text: str, where: str) -> Path:
        """An existing file within the folders. ApiError 403 outside them, 404 where there is none."""
        if "\0" in text or not self.inside(text):
            raise ApiError(403, f"{where}: {OUTSIDE}", where)
        if not Path(text).is_file():
            raise ApiError(404, f"{where}: no such file", where)
        return Path(text)

    def _admit(self, path: Path) -> None:
        if not self.inside(str(path)):
            text = f"config: {path.name} is extended from outside the project's data, models and runs folders"
            raise ApiError(403, text, "config")

    def resolved(self, file: str | None, overrides: Sequence[str], command: str = "") -> Config:
        """The configuration of a job, over the command's own defaults, its folders the server's. ApiError 400 or 403
        for what it may not set; ConfigError for what is wrong."""
        if any("${" in text or "\0" in text for text in overrides):
            raise ApiError(400, "set: placeholders and control characters are not taken from requests", "set")
        path = None if file is None else self.file(file, "config")
        config = command_config(command, path, list(overrides), plugin_problems, self._admit)
        ours, theirs = self.config.paths, config.paths
        for name in theirs.model_fields_set:
            if Path(getattr(theirs, name)).resolve() != Path(getattr(ours, name)).resolve():
                raise ApiError(403, f"paths.{name}: a job uses the server's own paths; leave `paths` out", "set")
        return self._checked(config.model_copy(update={"paths": ours}))

    def _checked(self, config: Config) -> Config:
        trusted = {leaf for source in (self.config, Config()) for leaf in _leaves(source.model_dump(mode="json"))}
        for place, value in _leaves(config.model_dump(mode="json")):
            key = place.rsplit(".", 1)[-1]
            if key == "trust_remote_code" and value is True and not self.config.model.trust_remote_code:
                raise ApiError(
                    403, f"{place}: only the server's own configuration may allow code of model folders", "set"
                )
            if not isinstance(value, str) or key in FREE_TEXT:
                continue
            if place in OUTPUTS and value:
                self._writes(place, value, config)
            elif (place, value) not in trusted and not self._allowed(place, value):
                raise ApiError(403, f"{place}: {OUTSIDE}", "set")
        if config.data.executor not in (self.config.data.executor, Config().data.executor):
            raise ApiError(403, "data.executor: only the server's own configuration names a cluster", "set")
        self._members(config)
        return config

    def _allowed(self, place: str, value: str) -> bool:
        if not _path_like(value):
            return True
        named = HUB_NAME.fullmatch(value) if place in HUB_PLACES else None
        if named is not None and (named[1] or not Path(value).exists()):
            return self.inside(named[2]) or not Path(named[2]).exists()
        return self.inside(value)

    def _writes(self, place: str, value: str, config: Config) -> None:
        if not self.inside(value):
            raise ApiError(403, f"{place}: {OUTSIDE}", "set")
        folder, runs = Path(value).resolve(), Path(self.config.paths.runs).resolve()
        if any(root.is_relative_to(folder) for root in self.roots):
            raise ApiError(403, f"{place}: one of the project's own folders; name a folder below it", "set")
        if folder.is_relative_to(runs) and not (place == "merge.output" and folder == _run(config) / "merged"):
            raise ApiError(403, f"{place}: inside a run; name a folder of the models", "set")

    def _members(self, config: Config) -> None:
        run = _run(config)
        if config.merge.run and any(root.is_relative_to(run) for root in self.roots):
            raise ApiError(403, "merge.run: one of the project's own folders; name a run in it", "set")
        if not all(self.inside(str(run / "checkpoints" / name)) for name in config.merge.members):
            raise ApiError(403, f"merge.members: {OUTSIDE}", "set")


def _run(config: Config) -> Path:
    return (Path(config.merge.run) if config.merge.run else Path(config.model.path).parent).resolve()


def _path_like(value: str) -> bool:
    if any(mark in value for mark in ("/", "\\", "..")) or value.startswith("~"):
        return True
    try:
        return Path(value).exists()
    except (OSError, ValueError):
        return False


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, place)
    else:
        yield place, value
