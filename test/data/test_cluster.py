# The executors of datatrove: the same rows as the process pool whatever the number of tasks, lost workers, S3, Slurm.
# Entry points: pytest; `pip install -e 'backend[dev,cluster,cluster-test]'` first, else all of this skips.
# Slurm is three scripts that run what is submitted at once; the scripts of datatrove are its own. Ray: two_raylets.py.
"""Tests of data/executor.py, data/executors, data/near.py, data/encode_units.py."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from data.cluster_material import AlwaysDies, KillsOnce
from data.material import QUIET, configuration, write_rows
from data.storage_material import made, raw_files, rows_in
from waiting import free_ports, until

from hildanext.cli import main
from hildanext.data.executor import Clustered, run_all
from hildanext.data.prepare import prepare
from hildanext.errors import DataError, RunError
from hildanext.registry import build

pytest.importorskip("datatrove", reason="pip install -e 'backend[cluster]'")
LOCAL = {"type": "local", "documents": 7}


@pytest.mark.parametrize("tasks", [1, 3])
def test_rows_of_any_number_of_tasks_are_the_rows_of_the_process_pool(tasks: int, tmp_path: Path) -> None:
    raw = raw_files(tmp_path / "raw")
    _, prepared, tokenized = made(tmp_path / "pool", raw)
    _, prepared_there, tokenized_there = made(tmp_path / "local", raw, executor={**LOCAL, "tasks": tasks}, workers=2)
    assert rows_in(tmp_path / "pool") == rows_in(tmp_path / "local")
    assert {**prepared, "config": 0} == {**prepared_there, "config": 0}
    for split, facts in tokenized["splits"].items():
        assert {**facts, "tokenizer": 0} == {**tokenized_there["splits"][split], "tokenizer": 0}
    assert not list((tmp_path / "local").glob("*/.*parts*"))


def test_the_task_of_a_killed_worker_is_run_again(tmp_path: Path) -> None:
    executor: Clustered = build("executors", LOCAL)
    run_all(executor, [KillsOnce(tmp_path)], 3, 1, str(tmp_path / "logs"), QUIET)
    assert {file.name for file in tmp_path.glob("done-*")} == {"done-0", "done-1", "done-2"}
    assert (tmp_path / "done-1").read_text() == "x"


def test_a_task_that_kills_every_worker_ends_the_command_with_the_place_of_its_log(tmp_path: Path) -> None:
    executor: Clustered = build("executors", LOCAL)
    with pytest.raises(RunError, match=r"2 of 2 tasks failed 3 times; .*logs/logs says why"):
        run_all(executor, [AlwaysDies(tmp_path)], 2, 1, str(tmp_path / "logs"), QUIET)


def test_an_error_of_the_user_in_a_task_is_the_error_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.json").write_text('[{"text": "broken off"')
    with pytest.raises(DataError, match="not a valid JSON array"):
        made(tmp_path / "out", tmp_path / "raw", executor=LOCAL)
    (tmp_path / "raw/a.json").write_text('[{"text": "whole now and long enough to be some rows"}]')
    assert made(tmp_path / "out", tmp_path / "raw", executor=LOCAL)[1]["documents"]["kept"] == 1


def _likeness(one: str, other: str, words: int = 3) -> float:
    shingles = [{tuple(t.split()[i : i + words]) for i in range(len(t.split()) - words + 1)} for t in (one, other)]
    return len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])


def test_near_duplicates_are_the_planted_ones_and_one_of_each_stays(tmp_path: Path) -> None:
    rng, words = random.Random(3), ("the", "a", "red", "ball", "dog", "cat", "ran", "saw", "met", "lake")
    texts = [" ".join(rng.choice(words) for _ in range(60)) for _ in range(30)]
    near = {f"{texts[index]} end": texts[index] for index in (2, 11, 23)}
    given = [*texts, *near, texts[2]]
    apart = max(_likeness(one, other) for i, one in enumerate(texts) for other in texts[:i])
    assert apart < 0.3 and all(_likeness(one, other) > 0.95 for one, other in near.items())
    kept = {}
    for tasks in (1, 2):
        for number in range(2):
            write_rows(tmp_path / f"raw/{number}.jsonl", [{"text": text} for text in given[number::2]])
        root = tmp_path / f"out{tasks}"
        config = configuration(
            root, [{"type": "jsonl", "path": str(tmp_path / "raw")}], executor={**LOCAL, "tasks": tasks},
            near_duplicates={"words": 3}, eval_share=0,
        )  # fmt: skip
        manifest = prepare(config, QUIET)
        assert manifest["documents"]["dropped"] == {"duplicate": 1, "near duplicate": 3}
        rows = (root / "processed/set/train.jsonl").read_text().splitlines()
        kept[tasks] = [json.loads(row)["text"] for row in rows]
    assert kept[1] == kept[2] and len(kept[1]) == 30
    assert all((one in kept[1]) != (other in kept[1]) for one, other in near.items())


SBATCH = """script=$(cat "${@: -1}"); dependent=$(grep -c 'dependency' <<< "$script")
echo "$script" >> "$FAKE/submitted"
last=$(grep -oP '(?<=array=0-)[0-9]+' <<< "$script")
if [ "$dependent" = 0 ]; then for i in $(seq 0 "$last"); do
  SLURM_ARRAY_TASK_ID=$i SLURM_NODELIST=node1 bash -c "${script}" > "$FAKE/out-$i" 2>&1
done; fi
echo "Submitted batch job 7"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sbatch that runs at once, srun, squeue that is empty, scontrol."""
    tools = tmp_path / "tools"
    tools.mkdir()
    scripts = {
        "sbatch": SBATCH, "squeue": "", "scontrol": "echo node1",
        "srun": 'while [[ "$1" == -* ]]; do [ "$1" = -n ] && shift; shift; done\nexec "$@"',
        "launch_pickled_pipeline": f'exec {sys.executable} -m datatrove.tools.launch_pickled_pipeline "$@"',
    }  # fmt: skip
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    return tmp_path


def test_slurm_gets_an_array_job_whose_rows_are_the_same(slurm: Path) -> None:
    raw = raw_files(slurm / "raw")
    made(slurm / "pool", raw)
    config = configuration(
        slurm / "slurm", [{"type": "jsonl", "path": str(raw)}],
        executor={"type": "slurm", "tasks": 2, "partition": "cpu", "options": {"account": "us"}, "asked_every": 0.1},
    )  # fmt: skip
    prepare(config, QUIET)
    rows = {name: rows for name, rows in rows_in(slurm / "pool").items() if name.startswith("processed")}
    assert rows == rows_in(slurm / "slurm") and rows
    submitted = (slurm / "submitted").read_text()
    assert all(line in submitted for line in ("--array=0-1", "--partition=cpu", "--account=us", "--cpus-per-task=1"))


def test_slurm_where_there_is_none_is_told_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = write_rows(tmp_path / "a.jsonl", [{"text": "Tom had a ball."}])
    given = ["prepare-data", "--data", str(raw), "--set", f"paths.data={tmp_path}", "--executor"]
    assert main([*given, "slurm"]) == 1
    assert "no sbatch and squeue here" in capsys.readouterr().err


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bucket of a real S3 endpoint: moto's server in a process of its own."""
    pytest.importorskip("moto", reason="pip install -e 'backend[cluster-test]'")
    pytest.importorskip("s3fs", reason="pip install -e 'backend[cluster]'")
    port = free_ports(1)
    url, settings = f"http://127.0.0.1:{port}", pytest.MonkeyPatch()
    with (tmp_path_factory.mktemp("s3") / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log, start_new_session=True
        )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        settings.setenv(name, "testing")
    settings.setenv("AWS_ENDPOINT_URL", url)
    settings.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        import s3fs

        until(lambda: _answers(port))
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir("rows")
        yield "s3://rows"
    finally:
        settings.undo()
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_rows_through_s3_by_tasks_of_other_processes_are_the_rows_of_this_machine(
    s3: str, tmp_path: Path, cache: Path
) -> None:
    from fsspec.core import url_to_fs

    from hildanext.train.training import open_shards

    raw = raw_files(tmp_path / "raw")
    made(tmp_path / "here", raw)
    system, _ = url_to_fs(s3)
    system.put(str(raw) + "/", "rows/raw/", recursive=True)
    config, prepared, _ = made(f"{s3}/data", f"{s3}/raw", executor={**LOCAL, "tasks": 2}, workers=2)
    system.get("rows/data/", str(tmp_path / "back") + "/", recursive=True)
    assert rows_in(tmp_path / "here") == rows_in(tmp_path / "back")
    assert prepared["documents"]["dropped"] == {"bad row: field 'text' is no text": 4, "duplicate": 3}
    assert not [name for name in system.find("rows/data") if "parts" in name]
    shards = open_shards(config, "train")
    assert shards.folder.is_relative_to(cache) and len(shards) == len(open_shards(config, "train"))
    system.invalidate_cache()
    place = "rows/data/tokenized/set/train/tokens.bin"
    system.pipe_file(place, bytes([system.cat_file(place)[0] ^ 1]) + system.cat_file(place)[1:])
    from hildanext.data import storage

    storage._kept.cache_clear()
    (shards.folder / "tokens.bin").unlink()
    with pytest.raises(DataError, match="tokens.bin is not what was written"):
        open_shards(config, "train")
