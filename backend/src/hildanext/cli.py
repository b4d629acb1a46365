# The command line: argument tree, threads, dispatch, exit codes.
# Entry points: main. Exit codes: 0 done, 1 failed, 2 the user's mistake, 130 interrupted with state saved.
# Human text goes to stderr; with --json exactly one JSON object goes to stdout. No heavy import before a command runs.
"""Command line of hildanext."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hildanext import __version__, commands
from hildanext.config import load_config, resolved_json
from hildanext.environment import usable_cores
from hildanext.errors import HildaError
from hildanext.progress import Console


def parser() -> argparse.ArgumentParser:
    """The whole argument tree; commands whose file does not exist are not listed."""
    root = argparse.ArgumentParser(prog="hildanext", description="Autoregressive model in, block-diffusion model out.")
    root.add_argument("--version", action="version", version=f"hildanext {__version__}")
    subparsers = root.add_subparsers(dest="command", metavar="command", required=True)
    for name in commands.available():
        module = commands.load(name)
        child = subparsers.add_parser(
            name.replace("_", "-"), help=module.HELP, description=module.HELP, allow_abbrev=False
        )
        _add_common(child)
        module.add_arguments(child)
        child.set_defaults(module=name)
    return root


def _add_common(child: argparse.ArgumentParser) -> None:
    group = child.add_argument_group("common")
    group.add_argument(
        "--config", type=Path, metavar="FILE", help="JSON configuration (runs/configs/*.json, or a run's config.json)"
    )
    group.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override one value; repeatable")
    group.add_argument("--run-dir", type=Path, metavar="DIR", help="use this run directory instead of a new one")
    group.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    group.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    group.add_argument("--quiet", action="store_true", help="no human text but warnings")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = parser().parse_args(argv)
    console = Console(quiet=args.quiet)
    try:
        return _dispatch(args, console)
    except HildaError as error:
        print(f"hildanext {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"hildanext {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _dispatch(args: argparse.Namespace, console: Console) -> int:
    from hildanext.registry import plugin_problems

    module = commands.load(args.module)
    base = getattr(module, "BASE", {})
    config = load_config(args.config, args.set, base, plugin_problems)
    if args.print_config:
        print(resolved_json(config), end="")
        return 0
    set_threads(config.runtime.threads)
    result = module.run(commands.Context(args, config, console))
    if args.json or getattr(module, "PRINTS", False):
        print(json.dumps(result if result is not None else {}, indent=None if args.json else 2, default=str))
    return _code(result)


def _code(result: Any) -> int:
    return int(result.get("exit_code", 0)) if isinstance(result, dict) else 0


def set_threads(threads: int) -> None:
    """Explicit OpenMP threads with passive waiting, unless the environment already says; before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads or usable_cores()))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


if __name__ == "__main__":
    sys.exit(main())
