# The subcommands, one file each; a file here is a subcommand (underscores become dashes).
# Entry points: Context, load, add_model, add_training, add_executor, resumed, plugin, source, add_request, asked,
# left_to_right.
# A command file has HELP, add_arguments(parser) and run(context) -> dict | None.
# A flag whose destination has a dot is a configuration value: dest="model.path". With JOB it may also run over HTTP.
# No decisions in a command: it reads its values, calls a part, says what happened.
"""Protocol of the subcommands."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, get_args

from hildanext.errors import DecodeError, HildaError

if TYPE_CHECKING:
    from hildanext.config import Config
    from hildanext.progress import Console


@dataclass(frozen=True)
class Context:
    """What a command gets: parsed arguments, the resolved configuration, the console for human text; tree: makes the
    whole argument tree."""

    args: argparse.Namespace
    config: Config
    console: Console
    tree: Callable[[], argparse.ArgumentParser] = argparse.ArgumentParser


class Command(Protocol):
    """A module of this folder."""

    HELP: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's own flags; what may run as a job has only those that are configuration values."""

    def run(self, context: Context) -> dict[str, Any] | None:
        """Do it; the returned object is what --json prints."""


def load(name: str) -> ModuleType:
    """The module of one command, by its name on the command line."""
    from importlib import import_module

    return import_module(f"hildanext.commands.{name.replace('-', '_')}")


def add_model(parser: argparse.ArgumentParser) -> None:
    """`--model FOLDER`, which is model.path."""
    parser.add_argument(
        "--model", dest="model.path", metavar="FOLDER", help="model folder (default: model.path of the configuration)"
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """`--resume [RUN]`, which is the run's configuration, its directory and train.resume; `--watch`."""
    parser.add_argument(
        "--resume", nargs="?", const="latest", metavar="RUN",
        help="go on from the newest checkpoint of a run directory, with its configuration; alone: of --run-dir",
    )  # fmt: skip
    parser.add_argument("--watch", action="store_true", help="draw the curves of loss and evaluation while it trains")


def resumed(args: argparse.Namespace) -> None:
    """Turn --resume RUN into --config, --run-dir and --set. HildaError for a directory of another command's run."""
    from hildanext.run_dir import read_status

    said = getattr(args, "resume", None)
    if said is None:
        return
    if said != "latest":
        run = Path(said)
        command = read_status(run).get("command", args.command)
        if command != args.command:
            raise HildaError(f"--resume {run}: is a run of {command}; go on with `hildanext {command} --resume {run}`")
        args.config, args.run_dir = args.config or run / "config.json", args.run_dir or run
    args.set = [*args.set, "train.resume=latest"]


def add_executor(parser: argparse.ArgumentParser) -> None:
    """`--executor NAME`, which is data.executor with its defaults."""
    parser.add_argument(
        "--executor", dest="data.executor", type=plugin, metavar="NAME",
        help="where the parts are done: processes, local, ray, slurm (the last three by datatrove)",
    )  # fmt: skip


def plugin(name: str) -> dict[str, str]:
    """The section of a plugin with its defaults, for a flag that takes its name."""
    return {"type": name}


def source(text: str) -> dict[str, Any]:
    """The section of a source of documents for FILE or FILE=WEIGHT, its share among the weighted ones; for argparse."""
    file, separator, weight = text.rpartition("=")
    if not separator or Path(text).exists():
        file, weight = text, ""
    kind = "tinystories" if re.search(r"\.txt(\.\w+)?$", file.lower()) else "jsonl"
    try:
        share = {"weight": float(weight)} if weight else {}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: {weight!r} is no weight; give FILE or FILE=WEIGHT") from None
    if share and not 0 < share["weight"] < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: a weight is above 0")
    return {"type": kind, "path": file, **share}


def add_request(parser: argparse.ArgumentParser) -> None:
    """A flag per field of a request that the command line takes (names_in "cli")."""
    from hildanext.decoding.request import Request, names_in

    for field, name in names_in("cli").items():
        about = Request.model_fields[field]
        several: dict[str, Any] = {"action": "append"} if field == "stop" else {}
        parser.add_argument(
            f"--{name.replace('_', '-')}", dest=field, metavar=_metavar(field, about.annotation),
            help=about.description, **several,
        )  # fmt: skip


def _metavar(field: str, annotation: Any) -> str:
    if field.startswith("tau_") or field == "top_p":
        return "P"
    kinds = set(_leaves(annotation))
    return "N" if int in kinds else "X" if float in kinds else "TEXT" if field == "stop" else field.upper()


def _leaves(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _leaves(part)


def asked(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a request that were given. DecodeError for a value that is none."""
    from hildanext.decoding.request import names_in

    return {field: _value(field, said) for field in names_in("cli") if (said := getattr(args, field)) is not None}


def _value(field: str, said: Any) -> Any:
    if field == "tau_edit":
        return _tau_edit(said)
    if field in ("policy", "carry", "kv", "grammar") and said.startswith("{"):
        try:
            return json.loads(said)
        except json.JSONDecodeError as error:
            raise DecodeError(f"--{field}: {said!r} is no JSON object ({error}); name a {field}, or give one") from None
    return said


def _tau_edit(said: str) -> float | str | None:
    try:
        return None if said == "off" else "preset" if said == "preset" else float(said)
    except ValueError:
        raise DecodeError(f"--tau-edit: {said!r} is neither a probability nor 'off'") from None


def left_to_right(config: Config) -> Config:
    """The configuration under which the model is read token by token, as its AR parent was trained."""
    from hildanext.config.serve import EngineSection

    # at block 1 with the AR shift every token is read from the one before it: the AR model itself, cached
    native = tuple(section for section in config.serve.engines if section.type in ("transformers", "tiny", "onnx"))
    update = {
        "model": config.model.model_copy(update={"shift": "clean", "override_recorded": True}),
        "decode": config.decode.model_copy(update={"block": 1, "window_blocks": 1}),
        "serve": config.serve.model_copy(update={"engines": native or (EngineSection(type="transformers"),)}),
    }
    return config.model_copy(update=update)
