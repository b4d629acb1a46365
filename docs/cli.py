# Writes docs/cli.md from the program's own parser: every command, its flags and defaults, which may run as a job.
# Entry points: page() -> text; `python docs/cli.py` writes the file.
# argparse wraps its help by the terminal and by Python's version, so usage lines are made here.
"""The manual page of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from hildanext.cli import parser
from hildanext.command_files import command_files

PAGE = Path(__file__).with_name("cli.md")
HEAD = """# hildanext: the command line

Written by `python docs/cli.py` from the program itself; a test holds the two together.
`hildanext COMMAND --help` says the same.

```console
hildanext COMMAND [flags]
```

Values are settled in this order, later ones winning: defaults, defaults of the command, what `extends` names, the file
of `--config`, `--set`, a flag of its own. Where a flag below says *sets*, it is that value of the configuration;
`hildanext COMMAND --print-config` prints them all, `hildanext config schema` says what each means.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed: a disk, a network, a check that did not hold |
| 2 | a mistake in what was asked; one line says which and what to do |
| 130 | interrupted, with its state saved; the same command with `--run-dir` goes on |

| environment | meaning |
|---|---|
| `HILDANEXT_API_KEY` | the key that clients of `serve` must send |
| `HILDANEXT_...` | may stand in a configuration as `${HILDANEXT_...}` |
| `OMP_NUM_THREADS` | threads of PyTorch; default `runtime.threads`, else the usable cores |
| `HF_HUB_OFFLINE=1` | nothing is looked up on the hub |

Text for people goes to stderr, results go to stdout.
"""


def page() -> str:
    """The whole page."""
    root = parser()
    action = next(one for one in root._actions if isinstance(one, argparse._SubParsersAction))
    common = set(_flags(action.choices["models"])) - {"`-h`, `--help`"}
    parts = [HEAD, "\n".join(_list()), "\n".join(_common(action.choices["models"]))]
    parts += ["\n".join(_command(name, action.choices[name], common)) for name in command_files()]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _list() -> Iterator[str]:
    yield "## Commands\n\n| command | what it does | as a job |\n|---|---|---|"
    for name, file in command_files().items():
        yield f"| [`{name}`](#{name}) | {_cell(file.help)} | {'yes' if file.job else ''} |"


def _common(child: argparse.ArgumentParser) -> Iterator[str]:
    yield "## Flags of every command\n"
    yield from _table(action for action in child._actions if action.dest != "help")


def _command(name: str, child: argparse.ArgumentParser, common: set[str]) -> Iterator[str]:
    file = command_files()[name]
    own = [action for action in child._actions if _shown(action) not in common and action.dest != "help"]
    words = [_word(action) for action in own if not action.option_strings]
    yield f"## {name}\n\n{file.help[0].upper()}{file.help[1:]}.\n"
    yield f"```console\nhildanext {' '.join([name, *words])}{' [flags]' if len(words) < len(own) else ''}\n```"
    if own:
        yield ""
        yield from _table(own)
    if file.job:
        yield f"\nReads of the configuration: {', '.join(f'`{place}`' for place in file.job)}."


def _table(actions: Iterator[argparse.Action] | list[argparse.Action]) -> Iterator[str]:
    yield "| flag | meaning |\n|---|---|"
    for action in actions:
        sets = f" *Sets* `{action.dest}`." if "." in action.dest else ""
        several = (
            " Repeatable." if isinstance(action, argparse._AppendAction) and "repeatable" not in _help(action) else ""
        )
        choices = f" One of {', '.join(f'`{one}`' for one in action.choices)}." if action.choices else ""
        yield f"| {_shown(action)} | {_cell(_help(action))}.{choices}{several}{sets} |"


def _flags(child: argparse.ArgumentParser) -> Iterator[str]:
    yield from (_shown(action) for action in child._actions)


def _help(action: argparse.Action) -> str:
    text = (action.help or "").replace("%%", "%").replace("%(default)s", str(action.default))
    return text.rstrip(".")


def _shown(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{_word(action)}`"
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return ", ".join(f"`{flag}{value}`" for flag in action.option_strings)


def _word(action: argparse.Action) -> str:
    names = action.metavar if isinstance(action.metavar, tuple) else (action.metavar or action.dest,)
    word = " ".join(str(name) for name in names)
    return {"?": f"[{word}]", "*": f"[{word} ...]", "+": f"{word} ..."}.get(str(action.nargs), word)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
