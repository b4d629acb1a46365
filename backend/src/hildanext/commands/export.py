# hildanext export: a model folder for another program.
# Entry points: add_arguments, run.
# The formats are plugins of hildanext.export; their settings are export.format of the configuration.
"""Subcommand `export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hildanext.commands import Context, add_model, plugin
from hildanext.disk import require_replaceable
from hildanext.errors import ConfigError
from hildanext.registry import build

HELP = "write a model folder for transformers, SGLang, llama.cpp or onnxruntime"
JOB = ("model.path", "export")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, which format, where."""
    add_model(parser)
    parser.add_argument(
        "--format",
        dest="export.format",
        type=plugin,
        metavar="NAME",
        help="huggingface | sglang | gguf | onnx (default: export.format)",
    )
    parser.add_argument(
        "--output",
        dest="export.output",
        metavar="FOLDER",
        help="folder to write (default: <paths.models>/exports/<name>)",
    )


def run(context: Context) -> dict[str, Any]:
    """The folder and its files."""
    from hildanext.models.load import load_model, name_of, place

    config, section = context.config, context.config.export.format
    export = build("exports", section, "export.format")
    name = f"{name_of(place(config.model.path).resolve())}-{section.type}"
    folder = Path(config.export.output or Path(config.paths.models) / "exports" / name)
    require_replaceable(folder)
    if folder.resolve() == place(config.model.path).resolve():
        raise ConfigError(f"export.output: {folder} is the model itself and would be replaced; name another folder")
    loaded = load_model(config.model, context.console)
    loaded.require("export")
    files = export.write(loaded, folder)
    context.console.say(f"{folder}: {', '.join(files)}")
    return {"folder": str(folder), "format": section.type, "files": files}
