# hildanext serve: the HTTP server with the page, the native and the OpenAI-compatible API, and jobs.
# Entry points: add_arguments, run.
# Loopback only, unless another host is named, which demands an API key.
"""Subcommand `serve`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context

HELP = "serve the page, /generate, an OpenAI-compatible API and jobs over HTTP"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Address, model, and the word that allows a server without a key."""
    parser.add_argument("--host", metavar="ADDRESS", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, metavar="N", help="TCP port (default 8080; 0 picks a free one)")
    parser.add_argument("--model", metavar="FOLDER", help="model folder (default: model.path of the configuration)")
    parser.add_argument("--insecure", action="store_true", help="listen beyond loopback without an API key")


def run(context: Context) -> dict[str, Any]:
    """Serve until interrupted."""
    from hildanext.api.serving import serve
    from hildanext.config import Config

    args = context.args
    values = context.config.model_dump()
    asked = {"host": args.host, "port": args.port, "insecure": args.insecure or None}
    values["serve"] |= {name: value for name, value in asked.items() if value is not None}
    values["model"] |= {"path": args.model} if args.model else {}
    return serve(Config.model_validate(values), context.console)
