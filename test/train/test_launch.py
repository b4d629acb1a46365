# launch: what it writes is what was asked, and the tools that read it take it; resume=auto; ranks that differ.
# Entry points: pytest. kubernetes-validate and shellcheck look on where they are installed (extra cluster-test).
# The two agents of torchrun, one of which is killed, are in test_agents.py.
"""Tests of train/launch.py, train/agreement.py and train.resume=auto."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from train.material import losses, run

from hildanext.cli import main
from hildanext.errors import RunError
from hildanext.train.agreement import require_same
from hildanext.train.distributed import Ranks

DDP = ["--set", "train.parallel=ddp"]
SHARED = ["--set", "launch.mount=/shared"]
FOUR = ["--set", 'train.parallel={"fsdp": 4}']


def launched(form: str, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """What the command prints."""
    given = ["launch", "convert-wsd", "--for", form, "--run-dir", "/shared/runs/My run_1", *DDP, *SHARED, *more]
    assert main(given) == 0
    return capsys.readouterr().out


def test_the_line_of_torchrun_is_the_command_with_its_values_and_resumes_by_itself(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a b.json").write_text('{"launch": {"nodes": 4, "least": 2, "restarts": 7}}')
    said = [
        "--config",
        str(tmp_path / "a b.json"),
        "--set",
        "seed=3",
        "--set",
        "train.resume=latest",
        "--processes",
        "2",
    ]
    setting, *words = shlex.split(launched("torchrun", capsys, *said))
    assert setting == "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
    assert words[:7] == ["torchrun", "--nnodes", "2:4", "--nproc-per-node", "2", "--max-restarts", "7"]
    assert words[words.index("-m") :] == [
        "-m", "hildanext", "convert-wsd", "--config", str(tmp_path / "a b.json"), "--set", "train.parallel=ddp",
        "--set", "seed=3", "--run-dir", "/shared/runs/My run_1", "--set", "train.resume=auto",
    ]  # fmt: skip


def test_the_script_for_slurm_starts_one_agent_a_machine_that_meet_on_the_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = launched("slurm", capsys, "--nodes", "3", "--set", "launch.setup=source env/bin/activate; : $UNSET")
    asked = dict(line[10:].partition("=")[::2] for line in script.splitlines() if line.startswith("#SBATCH --"))
    assert (asked["nodes"], asked["ntasks-per-node"], asked["gpus-per-node"]) == ("3", "1", "8")
    assert asked["signal"] == "TERM@120" and "requeue" in asked and "no-kill" in asked
    (tmp_path / "source").mkdir()
    tools = {"scontrol": "seq -f node%.0f 7 99999", "srun": 'printf "%s\\n" "$@"'}
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "env/bin").mkdir(parents=True)
    (tmp_path / "env/bin/activate").touch()
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "node[7-9]", "SLURM_JOB_ID": "41"}
    done = subprocess.run(
        ["bash"], input=script, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True
    )
    words = done.stdout.splitlines()
    assert words[:2] == ["--kill-on-bad-exit=0", "torchrun"]
    assert words[words.index("--rdzv-endpoint") + 1] == "node7:29500" and words[words.index("--rdzv-id") + 1] == "41"
    assert words[words.index("--run-dir") + 1] == "/shared/runs/My run_1"


def test_the_jobset_is_an_indexed_job_whose_first_pod_the_agents_name(capsys: pytest.CaptureFixture[str]) -> None:
    made = yaml.safe_load(launched("kubernetes", capsys, "--nodes", "3", "--processes", "4"))
    (job,) = made["spec"]["replicatedJobs"]
    spec, name = job["template"]["spec"], made["metadata"]["name"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert (
        name == "my-run-1" and spec["completionMode"] == "Indexed" and spec["parallelism"] == 3 == spec["completions"]
    )
    words = container["command"]
    endpoint = words[words.index("--rdzv-endpoint") + 1]
    assert endpoint == f"{name}-{job['name']}-0-0.{name}:{container['ports'][0]['containerPort']}"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}


def _job_of(manifest: dict[str, Any]) -> dict[str, Any]:
    (job,) = manifest["spec"]["replicatedJobs"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": job["template"]["spec"]}


def test_kubernetes_own_schema_takes_the_job_and_refuses_a_planted_field(capsys: pytest.CaptureFixture[str]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install -e 'backend[cluster-test]'")
    made = yaml.safe_load(launched("kubernetes", capsys, "--nodes", "2"))
    validate.validate(_job_of(made), "1.31", strict=True)
    made["spec"]["replicatedJobs"][0]["template"]["spec"]["completion"] = 2
    with pytest.raises(validate.ValidationError):
        validate.validate(_job_of(made), "1.31", strict=True)


def test_the_models_of_jobsets_schema_take_the_whole_manifest_and_refuse_planted_fields(
    capsys: pytest.CaptureFixture[str],
) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install -e 'backend[cluster-test]'")
    made = yaml.safe_load(launched("kubernetes", capsys, "--nodes", "2"))

    def known(manifest: dict[str, Any]) -> Any:
        """What is left of a manifest: fields that the schema has not are dropped, wrong types raise."""
        return models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict()

    assert known(made) == made
    made["spec"]["failurePolicy"]["restarts"] = 2
    assert known(made) != made
    made["spec"]["replicatedJobs"][0]["replicas"] = "one"
    with pytest.raises(ValueError, match="replicas"):
        known(made)


def test_shellcheck_finds_nothing_in_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    tool = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("pip install -e 'backend[cluster-test]'")
    script = launched("slurm", capsys, "--nodes", "2", "--set", "launch.setup=source ~/env/bin/activate")
    for text, code in ((script, 0), (script.replace('"$SLURM_JOB_ID"', "$SLURM_JOB_ID"), 1)):
        assert subprocess.run([tool, "-"], input=text, text=True, capture_output=True).returncode == code


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["generate", "--run-dir", "r", *DDP], "generate does not train"),
        (["sft", *DDP], "needs --run-dir"),
        (["sft", "--run-dir", "r"], "launch starts 8 processes; set ddp or fsdp2"),
        (["sft", "--run-dir", "r", *DDP, "--set", "launch.least=2"], "least: 2 machines of 1"),
        (["sft", "--for", "kubernetes", "--run-dir", "/data/r", *DDP], "/data/r is not in /work, the only folder"),
        (["sft", "--run-dir", "r", *FOUR, "--nodes", "2"], "numbers make 4 ranks, launch starts 16, 8 a machine"),
        (
            ["sft", "--run-dir", "r", *FOUR, "--nodes", "4", "--processes", "1", "--set", "launch.least=3"],
            "3 of 4 machines are fewer ranks than the numbers of train.parallel make; set ddp or fsdp2",
        ),
    ],
)
def test_what_cannot_be_launched_is_told_on_a_line(
    given: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["launch", *given]) == 2
    assert told in capsys.readouterr().err


def test_resume_auto_begins_where_there_is_nothing_and_goes_on_where_there_is(
    shards: Path, parent: Path, tmp_path: Path
) -> None:
    common = {"model__path": str(parent), "train__parity": False, "ladder": {"fixed": 8}, "train__checkpoint_every": 2}
    run(tmp_path / "whole", shards, train__steps=4, **common)
    for _ in range(2):
        run(tmp_path / "auto", shards, train__steps=4, train__resume="auto", **common)
    assert losses(tmp_path / "auto") == losses(tmp_path / "whole")
    shutil.rmtree(tmp_path / "auto" / "checkpoints" / "step-000004")
    report = run(tmp_path / "auto", shards, train__steps=4, train__resume="auto", **common)
    assert report["steps"] == 4 and losses(tmp_path / "auto") == losses(tmp_path / "whole")


class _Told(Ranks):
    """A rank among others that tell what they are given."""

    others: list[Any] = []

    def gathered(self, value: Any) -> list[Any]:
        return [value, *_Told.others]


def test_the_ranks_that_differ_are_named_with_what_differs() -> None:
    same = {"torch": "2.13", "configuration": "aa", "rows of train": "r"}
    _Told.others = [("b", dict(same)), ("c", {**same, "rows of train": "s"})]
    with pytest.raises(RunError, match=r"rank 2 \(c\) is not as rank 0 \(.*\): rows of train s, there r; give every"):
        require_same(_Told(), same)
    _Told.others = [("b", dict(same))]
    require_same(_Told(), same)
    _Told.others = [("b", {name: same[name] for name in ("torch", "configuration")})]
    with pytest.raises(RunError, match="rows of train None, there r"):
        require_same(_Told(), same)


def test_two_real_ranks_with_different_settings_end_before_the_first_step_with_one_line(
    shards: Path, parent: Path, tmp_path: Path
) -> None:
    import os

    from waiting import PATIENCE, free_ports

    port, here = str(free_ports(1)), str(Path(__file__).parent)
    program = (
        "import sys; from pathlib import Path; from train.material import overrides; from hildanext.cli import main\n"
        "sets = [word for one in overrides(Path(sys.argv[1]), model__path=sys.argv[2], train__parallel='ddp',"
        " seed=int(sys.argv[3])) for word in ('--set', one)]\n"
        "sys.exit(main(['convert-wsd', '--run-dir', sys.argv[4], *sets]))"
    )
    ranks = []
    for rank in ("0", "1"):
        found = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        path = os.pathsep.join([str(Path(here).parent), os.environ.get("PYTHONPATH", "")])
        ranks.append(
            subprocess.Popen(
                [sys.executable, "-c", program, str(shards), str(parent), rank, str(tmp_path / "run")],
                env=os.environ | found | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                stderr=subprocess.PIPE,
                text=True,
            )  # fmt: skip
        )
    said = [rank.communicate(timeout=PATIENCE)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1]
    assert all("rank 1 (" in text and "is not as rank 0" in text and "configuration" in text for text in said)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
