# hildanext config: show the resolved configuration, write its JSON Schema, check a file.
# Entry points: add_arguments, run.
# `config schema` includes the fields of every plugin that can be imported.
"""Subcommand `config`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context

HELP = "show or check the configuration; write its JSON Schema"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`schema`, `show` or `plugins`."""
    parser.add_argument("what", choices=("schema", "show", "plugins"), help="what to print")


def run(context: Context) -> dict[str, Any]:
    """The schema, the resolved configuration or the names of all plugins, as an object printed on stdout."""
    from hildanext import registry
    from hildanext.config import config_schema

    if context.args.what == "show":
        return context.config.model_dump(mode="json")
    listing = {kind: registry.names(kind) for kind in registry.KINDS}
    if context.args.what == "plugins":
        return listing
    plugins = {
        kind: {name: registry.load(kind, name).model_json_schema() for name in listing[kind]} for kind in listing
    }
    return config_schema() | {"x-plugins": plugins}


PRINTS = True
