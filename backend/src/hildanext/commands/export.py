# hildanext export: a model folder for another program.
# Entry points: add_arguments, run.
# The formats are plugins of hildanext.export; their settings are export.format of the configuration.
"""Subcommand `export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hildanext.commands import Context
from hildanext.config.eval import ExportSection
from hildanext.registry import build

HELP = "write a model folder for transformers or SGLang"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, which format, where."""
    parser.add_argument("--model", metavar="FOLDER", help="model folder (default: model.path of the configuration)")
    parser.add_argument("--format", metavar="NAME", help="huggingface | sglang (default: export.format)")
    parser.add_argument("--output", metavar="FOLDER", help="folder to write (default: <paths.models>/exports/<name>)")


def run(context: Context) -> dict[str, Any]:
    """The folder and its files."""
    from hildanext.models.load import load_model

    args, config = context.args, context.config
    model = config.model.model_copy(update={"path": args.model} if args.model else {})
    section = ExportSection(type=args.format) if args.format else config.export.format
    plugin = build("exports", section, "export.format")
    loaded = load_model(model, context.console)
    loaded.require("export")
    name = f"{Path(model.path).name}-{section.type}"
    folder = Path(args.output or config.export.output or Path(config.paths.models) / "exports" / name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    files = plugin.write(loaded, folder)
    context.console.say(f"{folder}: {', '.join(files)}")
    return {"folder": str(folder), "format": section.type, "files": files}
