# The configuration of one command: its own defaults below the file, and others again where adapters are trained.
# Entry points: command_config.
# The command line and the job queue both come here, so that a job is what the command would be.
"""Configuration by command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hildanext.command_files import command_files
from hildanext.config.loader import load_config, merge
from hildanext.config.root import Config


def command_config(
    command: str,
    path: Path | None,
    overrides: Sequence[str] = (),
    check: Callable[[Mapping[str, Any]], list[str]] | None = None,
    admit: Callable[[Path], None] | None = None,
) -> Config:
    """load_config over BASE of the command's file, and over ADAPTED where model.adapter asks for adapters. ConfigError
    names every problem at once."""
    file = command_files().get(command)
    base = dict(file.base) if file else {}
    config = load_config(path, overrides, base, check, admit)
    if file is None or not file.adapted or config.model.adapter.kind == "none":
        return config
    return load_config(path, overrides, merge(base, file.adapted), check, admit)
