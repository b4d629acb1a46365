# hildanext generate as a person runs it: text on stdout, facts on stderr, traces in files, mistakes with exit code 2.
# Entry points: the tests; they run main() in this process on the real tiny checkpoint.
# The transformers engine is asked for by name, so that no other engine can answer.
"""The generate command."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hildanext.cli import main
from hildanext.decoding.events import Draft, DraftToken
from hildanext.report import terminal
from hildanext.report.terminal import last_lines, picture


@pytest.fixture
def base(assets: Path) -> list[str]:
    engines = 'serve.engines=[{"type":"transformers"}]'
    return ["generate", "--model", str(assets / "stories260k-hf"), "--set", engines, "--set", "decode.block=8"]


def test_text_goes_to_stdout_and_the_numbers_to_stderr(base: list[str], capsys: Any) -> None:
    assert main([*base, "--prompt", "Once upon a time", "--max-new-tokens", "8", "--mode", "S_MODE"]) == 0
    out, err = capsys.readouterr()
    assert (
        out.strip()
        and "tokens per forward (" in err
        and "with every commit a forward of its own) of" in err
        and "S_MODE from the table" in err
        and "transformers" in err
    )


def test_json_holds_the_result_and_streaming_gives_the_same_text(base: list[str], capsys: Any) -> None:
    rest = ["--prompt", "Once upon a time", "--max-new-tokens", "9", "--tau-mask", "0.2", "--tau-edit", "off"]
    assert main([*base, *rest, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["preset"]["tau_edit"] is None and result["metrics"]["tokens"] == len(result["token_ids"])
    assert main([*base, *rest, "--stream"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == result["text"].rstrip("\n")


def test_a_trace_has_a_line_per_step(base: list[str], capsys: Any, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    assert (
        main([*base, "--prompt", "Once", "--max-new-tokens", "6", "--tau-edit", "off", "--json", "--trace", str(trace)])
        == 0
    )
    steps = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    assert len(steps) == json.loads(capsys.readouterr().out)["metrics"]["steps"]
    assert {"pos", "id", "text", "confidence", "state"} == set(steps[0]["tokens"][0])


def test_infill_fills_the_gaps_and_says_what_it_cannot_do(base: list[str], capsys: Any) -> None:
    assert main([*base, "--prompt", "One day <gap:4> went home.", "--infill"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("One day") and out.rstrip().endswith("went home.") and "is not seen" in err


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        (["--mode", "FAST"], "no mode 'FAST'"),
        (["--tau-edit", "maybe"], "neither a probability nor 'off'"),
        (["--tau-edit", "1.5"], "tau_edit"),
        (["--tau-mask", "-0.1"], "tau_mask"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--trace", "missing/trace.jsonl"], "existing folder"),
        (["--infill"], "gaps"),
        (["--max-new-tokens", "100000"], "window"),
    ],
)
def test_mistakes_exit_with_2_and_say_what_to_do(base: list[str], capsys: Any, rest: list[str], words: str) -> None:
    assert main([*base, "--prompt", "Once", *rest]) == 2
    assert words in capsys.readouterr().err


def test_the_live_view_colours_tokens_by_what_happened_to_them() -> None:
    draft = Draft(
        0,
        1,
        (DraftToken(0, 1, "a", 0.5, "new"), DraftToken(1, 9, "", 0.0, "mask"), DraftToken(2, 2, "b", 0.9, "edited")),
    )
    assert picture("So ", draft, True).plain == picture("So ", draft).plain
    shown = picture("So ", draft)
    assert shown.plain == "So a░b" and [str(span.style) for span in shown.spans] == ["bold green", "dim", "bold yellow"]


def test_given_tokens_are_drawn_only_where_they_are_part_of_the_text() -> None:
    draft = Draft(0, 1, (DraftToken(0, 1, "so", 0.0, "given"), DraftToken(1, 9, "", 0.0, "mask")))
    assert picture("", draft).plain == "░" and picture("", draft, True).plain == "so░"


def test_the_live_view_shows_the_end_of_a_text_that_is_longer_than_the_terminal() -> None:
    console = Console(width=20, height=5, file=io.StringIO())
    console.print(last_lines(picture(" ".join(f"word{n}" for n in range(40)), None), console))
    lines = console.file.getvalue().split("\n")
    assert "word39" in console.file.getvalue() and len([line for line in lines if line.strip()]) == 4


def test_a_terminal_gets_the_text_once_on_stdout(base: list[str], capsys: Any, monkeypatch: Any) -> None:
    rest = [*base, "--prompt", "Once upon a time", "--max-new-tokens", "9", "--tau-edit", "off"]
    assert main([*rest, "--quiet"]) == 0
    plain = capsys.readouterr().out
    monkeypatch.setattr(terminal, "watch", terminal._watch_live)
    assert main([*rest, "--quiet", "--stream"]) == 0
    assert capsys.readouterr().out == plain
