# The decode settings that `tune` found for a model folder on a machine, and their use there by generate and serve.
# Entry points: with_recommended, recommend.
# A value that somebody gives wins over a recommended one; on another machine none is used. Both are said.
"""Recommended settings of a model folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hildanext.config import Config
from hildanext.config.places import exists, given, with_values
from hildanext.disk import write_atomic
from hildanext.environment import usable_cores
from hildanext.errors import ModelError
from hildanext.models.hardware import machine
from hildanext.models.load import BUNDLED, NEW, place
from hildanext.models.meta import META_FILE, HildaMeta, Recommended
from hildanext.progress import Console

THREADS = "runtime.threads"


def with_recommended(config: Config, console: Console) -> Config:
    """The configuration with the recommended values of model.path's folder that nobody gave otherwise. ModelError for a
    folder whose hildanext.json cannot be read."""
    path = config.model.path
    found = None if path in (*BUNDLED, NEW) else HildaMeta.read(place(path)).recommended
    if found is None:
        return config
    if found.machine != machine():
        console.say(f"{path}: tuned on another machine ({found.machine}), not used; `hildanext tune` finds this one's")
        return config
    unknown = [name for name in found.values if not exists(name)]
    if unknown:
        console.warn(f"{path}: tuned with {unknown[0]}, which this version does not have; nothing of it is used")
        return config
    values = {name: value for name, value in found.values.items() if not given(config, name)}
    kept = sorted(found.values.keys() - values.keys())
    beside = f"; {', '.join(kept)} as given" if kept else ""
    console.say(f"tuned settings of {path}: {_said(values)}{beside}")
    _set_threads(values)
    return with_values(config, values)


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "none that is not given"


def _set_threads(values: Mapping[str, Any]) -> None:
    wanted = values.get(THREADS)
    own = os.environ.get("OMP_NUM_THREADS", "")
    if wanted and own in ("", str(usable_cores())):  # else the environment said so itself
        torch.set_num_threads(int(wanted))


def recommend(folder: Path, values: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Write values by place into a folder's hildanext.json, for this machine; about: what was measured, in plain
    values. Returns the file. ModelError for a bundled model, which belongs to the installation, and for no folder."""
    meta_file = folder / META_FILE
    if any(place(name).absolute() == folder.absolute() for name in BUNDLED):
        raise ModelError(f"{folder}: the bundled model belongs to the package; export it, and tune that folder")
    if not folder.is_dir():
        raise ModelError(f"{folder}: no model folder to write into")
    found = Recommended(values=dict(values), machine=machine(), about=dict(about))
    write_atomic(meta_file, HildaMeta.read(folder).model_copy(update={"recommended": found}).text())
    return meta_file
