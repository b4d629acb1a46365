# hildanext completion: what bash is offered is what the parser takes.
# Entry points: pytest.
# The printed script is sourced by a real bash, and its function called as bash calls it on a Tab.
"""Tests of commands/completion.py."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from hildanext.cli import main, parser
from hildanext.config.start import MACHINES

TAB = """source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
_shtab_hildanext hildanext "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}" """


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["completion", shell, "--quiet"]) == 0
    return capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
def test_a_tab_in_bash_offers_what_the_parser_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.json").write_text("{}")
    (tmp_path / "complete.bash").write_text(script("bash", capsys))

    def offered(*words: str) -> set[str]:
        command = ["bash", "-c", TAB, "tab", "complete.bash", "hildanext", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        return {word.strip() for word in done.stdout.split()}

    assert offered("se") == {"serve"} and offered("run") == {"runs"}
    assert offered("init", "convert", "--machine", "") == set(MACHINES)
    assert {"--model", "--machine"} <= offered("init", "--m") and "--resume" in offered("sft", "--re")
    assert "mine.json" in offered("sft", "--config", "mi")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_know_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = script(shell, capsys)
    commands = next(action.choices for action in parser()._actions if action.choices)
    assert all(name in text for name in commands) and ("--machine" if shell == "zsh" else "-l machine") in text
    assert main(["completion", shell, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": shell, "script": text[:-1]}
