# The command line: argument tree, threads, dispatch, exit codes.
# Entry points: main, parser, spoken. Exit codes: 0 done, 1 failed, 2 the user's mistake, 130 interrupted, state saved.
# Human text goes to stderr; with --json exactly one JSON object goes to stdout. No heavy import before a command runs.
"""Command line of hildanext."""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hildanext import __version__, commands
from hildanext.command_files import command_files
from hildanext.disk import UNWRITABLE
from hildanext.environment import usable_cores
from hildanext.errors import HildaError, cure
from hildanext.progress import Chart, Console

REFUSED = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO)
"""What the system says of a path that it refuses: a mistake of the user or of the machine, not of the program."""


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """The argument tree: every command with its help; its flags too, for all commands or the one named. Only a command
    whose flags are added is imported."""
    root = argparse.ArgumentParser(prog="hildanext", description="Autoregressive model in, block-diffusion model out.")
    root.add_argument("--version", action="version", version=f"hildanext {__version__}")
    subparsers = root.add_subparsers(dest="command", metavar="command", required=True)
    for name, file in command_files().items():
        child = subparsers.add_parser(name, help=file.help, description=file.help, allow_abbrev=False)
        if only in (None, name):
            _add_common(child)
            commands.load(name).add_arguments(child)
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
    words = sys.argv[1:] if argv is None else list(argv)
    _speak_anything()
    for word in words:
        if (said := readable(word)) != word:
            print(
                f"hildanext: the argument {said!r} is not UTF-8; convert it, or read a prompt from stdin",
                file=sys.stderr,
            )
            return 2
    command = next((word for word in words if not word.startswith("-")), "")
    args = parser(command).parse_args(words)
    console = Console(quiet=args.quiet, chart=_chart() if getattr(args, "watch", False) else None)
    return spoken(f"hildanext {args.command}", lambda: _dispatch(args, console))


def spoken(name: str, work: Callable[[], int | None]) -> int:
    """Do it; the exit code, 0 for None. What whoever asked can cure is one line of stderr that begins with the name."""
    try:
        return work() or 0
    except HildaError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (*UNWRITABLE, *REFUSED):
            raise
        advice = cure(error, "look at the path, its rights and its file system, or name another")
        print(f"{name}: {error.filename or 'a file'}: {error.strerror}; {advice}", file=sys.stderr)
        return 1


def _chart() -> Chart:
    from hildanext.report.curves import watched

    return watched


def readable(word: str) -> str:
    """The word with every byte that is not UTF-8 replaced."""
    return word.encode("utf-8", "replace").decode()


def _speak_anything() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal of another encoding still gets the rest


def _dispatch(args: argparse.Namespace, console: Console) -> int:
    from hildanext.config import resolved_json
    from hildanext.config.for_command import command_config
    from hildanext.registry import plugin_problems

    module = commands.load(args.command)
    commands.resumed(args)
    args.set = with_flags(args.set, values_of(args))
    config = command_config(args.command, args.config, args.set, plugin_problems)
    if args.print_config:
        print(resolved_json(config, args.command), end="")
        return 0
    set_threads(config.runtime.threads)
    with _terminable(hasattr(module, "JOB")):
        result = module.run(commands.Context(args, config, console, parser))
    if args.json or getattr(module, "PRINTS", False):
        print(json.dumps(result if result is not None else {}, indent=None if args.json else 2, default=str))
    return _code(result)


@contextmanager
def _terminable(wanted: bool) -> Iterator[None]:
    here = threading.current_thread() is threading.main_thread()
    if not wanted or not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what is half written and what was started goes too
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def values_of(args: argparse.Namespace) -> list[str]:
    """The flags that were given and are configuration values, as overrides a.b=JSON; they beat --set."""
    given = {place: value for place, value in vars(args).items() if "." in place and value not in (None, [])}
    return [f"{place}={json.dumps(value)}" for place, value in given.items()]


def with_flags(sets: Sequence[str], flags: Sequence[str]) -> list[str]:
    """--set values and the flags that beat them. A flag that names a plugin comes before the fields set of it."""
    named = tuple(f"{flag.partition('=')[0]}." for flag in flags if flag.partition("=")[2].startswith('{"type"'))
    fields = [one for one in sets if one.startswith(named) and not one.partition("=")[0].endswith(".type")]
    return [*(one for one in sets if one not in fields), *flags, *fields]


def _code(result: Any) -> int:
    return int(result.get("exit_code", 0)) if isinstance(result, dict) else 0


def set_threads(threads: int) -> None:
    """Explicit OpenMP threads with passive waiting, unless the environment already says; before torch is imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads or usable_cores()))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


if __name__ == "__main__":
    sys.exit(main())
