# The commands before they are imported: help and job kinds from their text, flags that are configuration values.
# Entry points: pytest.
# Imports are counted in fresh interpreters; a command of the test's own is one file in a temporary folder.
"""Command files, job kinds and lazy imports."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hildanext import cli, commands
from hildanext.cli import parser, values_of, with_flags
from hildanext.command_files import command_files, job_kinds
from hildanext.config import Config, load_config, resolved_json
from hildanext.config.root import OWNED, fields_at
from hildanext.errors import ConfigError
from hildanext.registry import plugin_problems
from hildanext.run_dir import RunDir

COMMON = {"help", "config", "set", "run_dir", "print_config", "json", "quiet"}
VIEWS = {"resume", "watch", "print_plan"}
NEW = 'HELP = "count to ten"\nJOB = ("seed", "train.steps")\n\ndef run(context): ...\n'


def own_flags(name: str) -> set[str]:
    """Destinations of a command's own arguments."""
    tree = parser(name)
    action = next(a for a in tree._actions if isinstance(a, argparse._SubParsersAction))
    return {a.dest for a in action.choices[name]._actions} - COMMON


@pytest.mark.parametrize("name", command_files())
def test_the_help_read_from_the_text_is_that_of_the_module(name: str) -> None:
    module = commands.load(name)
    assert command_files()[name].help == module.HELP != ""
    assert command_files()[name].job == getattr(module, "JOB", ())


def test_every_command_file_is_a_command_of_the_tree() -> None:
    folder = Path(commands.__file__).parent
    files = {path.stem.replace("_", "-") for path in folder.glob("*.py")} - {"--init--"}
    action = next(a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert set(action.choices) == set(command_files()) == files


def test_what_can_be_a_job() -> None:
    assert set(job_kinds()) == {
        "prepare-data", "answer", "tokenize", "convert-wsd", "sft", "on-policy", "rl", "dpo", "latent",
        "merge-checkpoints", "anchors", "trajectories", "sweep",
        "eval", "export",
        "bench",
        "inspect",
    }  # fmt: skip


def test_a_command_that_may_run_as_a_job_is_one_file(tmp_path: Path) -> None:
    (tmp_path / "count_up.py").write_text(NEW)
    (tmp_path / "talk.py").write_text('HELP = "talk"\n')
    assert list(command_files(tmp_path)) == ["count-up", "talk"]
    (kind,) = job_kinds(tmp_path).values()
    assert (kind.name, kind.help) == ("count-up", "count to ten")
    assert [field.place for field in fields_at(kind.job)] == ["seed", "train.steps"]


@pytest.mark.parametrize("name", job_kinds())
def test_everything_a_job_takes_is_a_configuration_value_that_it_lists(name: str) -> None:
    listed = {field.place for field in fields_at(job_kinds()[name].job)}
    taken = own_flags(name) - VIEWS
    assert taken <= listed, f"{name} takes {taken - listed}, which its JOB does not name"


def test_a_job_that_names_no_place_of_the_configuration_fails() -> None:
    with pytest.raises(ValueError, match=r"train\.stepz"):
        fields_at(("train.stepz",))


@pytest.mark.parametrize(
    ("words", "sets"),
    [
        (["bench", "decode"], ["bench.part=decode"]),
        (["eval", "--model", "m", "--task", "nll", "--task", "steps", "--against", "r/a", "--against", "7"],
         ["model.path=m", 'eval.tasks=[{"type": "nll"}, {"type": "steps"}]', 'eval.against=["r/a", "7"]']),
        (["merge-checkpoints", "runs/x", "--best", "2", "--members", "a", "b", "--output", "o"],
         ["merge.run=runs/x", "merge.best=2", 'merge.members=["a", "b"]', "merge.output=o"]),
        (["inspect", "tiny", "--against", "tiny-parent", "--no-parity"],
         ["model.path=tiny", "inspect.against=tiny-parent", "inspect.parity=false"]),
        (["export", "--format", "sglang", "--output", "12"], ["export.format.type=sglang", "export.output=12"]),
        (["serve", "--host", "::1", "--port", "0", "--insecure"],
         ["serve.host=::1", "serve.port=0", "serve.insecure=true"]),
    ],
    ids=lambda value: value[0],
)  # fmt: skip
def test_flags_mean_the_same_as_their_values(words: list[str], sets: list[str]) -> None:
    assert load_config(None, values_of(parser(words[0]).parse_args(words))) == load_config(None, sets)


def test_a_flag_that_names_a_plugin_keeps_the_fields_set_of_it() -> None:
    words = ["export", "--format", "gguf"]
    given = ['export.format={"type": "sglang"}', "export.format.dtype=q8_0", "export.format.type=sglang", "seed=3"]
    found = load_config(None, with_flags(given, values_of(parser("export").parse_args(words))))
    assert found.export.format.model_dump() == {"type": "gguf", "dtype": "q8_0"} and found.seed == 3


def test_a_flag_beats_set(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "--set", "model.path=a", "--model", "b", "--print-config"]
    assert cli.main(words) == 0 and json.loads(capsys.readouterr().out)["model"]["path"] == "b"


@pytest.mark.parametrize("command", ["sft", "eval", "generate", "bench-train", "merge-checkpoints", "inspect"])
def test_a_saved_configuration_holds_no_section_of_another_command(command: str, tmp_path: Path) -> None:
    run = RunDir.create(Config.model_validate({"paths": {"runs": str(tmp_path)}}), command)
    saved = json.loads((run.path / "config.json").read_text())
    assert {name for name in OWNED if name in saved} == {n for n, owner in OWNED.items() if command.startswith(owner)}
    assert load_config(run.path / "config.json").train == Config().train


def test_without_a_command_everything_is_written() -> None:
    assert set(json.loads(resolved_json(Config()))) == set(Config.model_fields)


@pytest.mark.parametrize("old", ["data", "train", "decode"])
def test_an_old_place_of_bench_settings_is_an_error_that_names_the_new_one(old: str) -> None:
    with pytest.raises(ConfigError, match=rf"{old}\.bench: unknown key, it is now bench\.{old}"):
        load_config(base={old: {"bench": {"repeats": 1}}})


def test_a_file_from_before_a_key_moved_still_means_the_same(tmp_path: Path) -> None:
    old = {
        "data": {"bench": {"repeats": 5}, "humaneval_rows": 7, "name": "mine"}, "train": {"bench": {"length": 64}},
        "decode": {"bench": {"requests": 3}}, "objective": {"type": "mask_and_edit", "edit_weight": 2.0},
    }  # fmt: skip
    (tmp_path / "old.json").write_text(json.dumps(old), encoding="utf-8")
    found = load_config(tmp_path / "old.json", check=plugin_problems)
    assert (found.bench.data.repeats, found.bench.train.length, found.bench.decode.requests) == (5, 64, 3)
    assert found.objective.model_dump() == {"type": "mask_and_edit", "t2t_weight": 2.0} and found.data.name == "mine"


def test_an_unknown_part_of_bench_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--set", "bench.part=decoed"]) == 2
    assert "did you mean 'decode'" in capsys.readouterr().err


def loaded(statement: str) -> set[str]:
    """Modules of the package in a fresh interpreter after a statement."""
    code = f"import sys; from hildanext.cli import main, parser\n{statement}\nprint('\\n' + ','.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split(","))


def commands_in(modules: set[str]) -> set[str]:
    return {name.removeprefix("hildanext.commands.") for name in modules if name.startswith("hildanext.commands.")}


def test_the_list_of_commands_imports_none_of_them_and_no_schema() -> None:
    found = loaded("parser('')")
    assert commands_in(found) == set() and "pydantic" not in found


def test_the_whole_tree_shows_that_the_count_can_fail() -> None:
    assert commands_in(loaded("parser()")) >= {"generate", "eval"}


def test_a_generation_imports_its_own_command_and_the_plugins_it_uses() -> None:
    sets = "'--set', 'serve.engines=[{\"type\": \"tiny\"}]', '--set', 'model.path=tiny'"
    found = loaded(f"main(['generate', '--prompt', 'Lily', '--max-new-tokens', '2', {sets}])")
    assert commands_in(found) == {"generate"}
    rooms: Any = ("measure", "train", "bench", "selftest", "api", "export", "core.objectives", "data.sources")
    assert [name for name in found if name.startswith(tuple(f"hildanext.{room}" for room in rooms))] == []
    policies = {name.rsplit(".", 1)[1] for name in found if name.startswith("hildanext.decoding.policies.")}
    assert policies == {"threshold_edit"}


def test_help_takes_less_than_three_tenths_of_a_second_of_work() -> None:
    code = "import time; from hildanext.cli import parser; parser('').format_help(); print(time.process_time())"
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in "ab"
    ]
    assert min(seconds) < 0.3, time.process_time()
