# hildanext completion: the completion script of a shell, made of the parser.
# Entry points: add_arguments, run.
# Printed, so that it goes where the shell looks; the line on stderr says where that is.
"""Subcommand `completion`."""

from __future__ import annotations

import argparse
from typing import Any

from hildanext.commands import Context

HELP = "print the completion script of bash, zsh or fish"
SHELLS = ("bash", "zsh", "fish")
PLACES = {
    "bash": "~/.local/share/bash-completion/completions/hildanext",
    "zsh": "a folder of $fpath, as _hildanext (then: compinit)",
    "fish": "~/.config/fish/completions/hildanext.fish",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """SHELL."""
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def run(context: Context) -> dict[str, Any] | None:
    """The script on stdout; {"shell", "script"} with --json."""
    import shtab

    root, shell = context.tree(), context.args.shell
    for child in _below(root):
        for action in child._actions:
            kind = shtab.FILE if "FILE" in str(action.metavar) else shtab.DIRECTORY if _is_folder(action) else None
            if kind is not None and action.choices is None and (action.nargs != 0):
                action.complete = kind  # type: ignore[attr-defined]
    script = shtab.complete(root, shell)
    context.console.say(f"save it as {PLACES[shell]}")
    if context.args.json:
        return {"shell": shell, "script": script}
    print(script)
    return None


def _is_folder(action: argparse.Action) -> bool:
    return str(action.metavar) in ("FOLDER", "DIR", "RUN", "PATH", "folder", "parent", "child")


def _below(root: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    found = [action for action in root._actions if isinstance(action, argparse._SubParsersAction)]
    return [root, *(child for action in found for child in action.choices.values())]
