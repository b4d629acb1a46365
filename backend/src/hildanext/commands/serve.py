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
    parser.add_argument("--host", dest="serve.host", metavar="ADDRESS", help="address to listen on (default 127.0.0.1)")
    parser.add_argument(
        "--port", dest="serve.port", type=int, metavar="N", help="TCP port (default 8080; 0 picks a free one)"
    )
    parser.add_argument(
        "--model", dest="serve.models", action="append", metavar="FOLDER",
        help="model folder, or NAME=FOLDER; several are chosen by name (default: model.path of the configuration)",
    )  # fmt: skip
    parser.add_argument(
        "--insecure", dest="serve.insecure", action="store_const", const=True,
        help="listen beyond loopback without an API key",
    )  # fmt: skip


def run(context: Context) -> dict[str, Any]:
    """Serve until interrupted."""
    from hildanext.api.serving import serve

    return serve(context.config, context.console)
