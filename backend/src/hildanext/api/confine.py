# What a request may name on this machine: paths within the project's data, models and runs folders, and nothing else.
# Entry points: Confinement (file, resolved), job_id.
# Links are followed before the check, so a link that leads out is refused.
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
from hildanext.registry import plugin_problems

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FREE_TEXT = frozenset({"description", "prompts"})
LOCAL = frozenset({"output", "against", "run", "members", "resume", "data"})
"""Keys whose value is a place on this machine, never a name on a hub."""


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
        """Whether a path, its links followed, lies within the folders."""
        try:
            path = Path(text).resolve()
        except (OSError, ValueError, RuntimeError):
            return False
        return any(path.is_relative_to(root) for root in self.roots)

    def file(self, text: str, where: str) -> Path:
        """An existing file within the folders. ApiError 403 outside them, 404 where there is none."""
        if "\0" in text or not self.inside(text):
            raise ApiError(403, f"{where}: outside the project's data, models and runs folders", where)
        if not Path(text).is_file():
            raise ApiError(404, f"{where}: no such file", where)
        return Path(text)

    def _admit(self, path: Path) -> None:
        if not self.inside(str(path)):
            text = f"config: {path.name} is extended from outside the project's data, models and runs folders"
            raise ApiError(403, text, "config")

    def resolved(self, file: str | None, overrides: Sequence[str], command: str = "") -> Config:
        """The configuration of a job, over the command's own defaults. ApiError 400 or 403 for what it may not set;
        ConfigError for what is wrong."""
        if any("${" in text or "\0" in text for text in overrides):
            raise ApiError(400, "set: placeholders and control characters are not taken from requests", "set")
        path = None if file is None else self.file(file, "config")
        config = command_config(command, path, list(overrides), plugin_problems, self._admit)
        if config.paths != self.config.paths:
            if path is None and not any(text.strip().startswith("paths") for text in overrides):
                return self._checked(config.model_copy(update={"paths": self.config.paths}))
            raise ApiError(403, "set: a job uses the server's own paths; leave `paths` out", "set")
        return self._checked(config)

    def _checked(self, config: Config) -> Config:
        trusted = {value for source in (self.config, Config()) for _, value in _leaves(source.model_dump(mode="json"))}
        for place, value in _leaves(config.model_dump(mode="json")):
            key = place.rsplit(".", 1)[-1]
            if key == "trust_remote_code" and value is True and not self.config.model.trust_remote_code:
                raise ApiError(
                    403, f"{place}: only the server's own configuration may allow code of model folders", "set"
                )
            foreign = isinstance(value, str) and value not in trusted and key not in FREE_TEXT
            if foreign and not self._allowed(value, key not in LOCAL):
                raise ApiError(403, f"{place}: outside the project's data, models and runs folders", "set")
        return config

    def _allowed(self, value: str, hub: bool) -> bool:
        if not _path_like(value) or self.inside(value):
            return True
        return hub and HUB_NAME.fullmatch(value) is not None and not Path(value).exists()


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
