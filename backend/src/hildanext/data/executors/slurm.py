# Executor `slurm`: datatrove's executor, which submits an array job by sbatch; this process waits for its end.
# Entry points: Slurm.
# Run it on a login node. Every node needs this package, in the environment that `setup` enters, and reaches paths.data.
# squeue says when the job has left the queue; what it did not finish is submitted again.
"""Executor plugin slurm."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from hildanext.data.executor import Clustered, quiet_datatrove, require_datatrove
from hildanext.errors import RunError


class Slurm(Clustered):
    """datatrove's pipelines as an array job of Slurm."""

    partition: str = Field("", description="partition; empty: the cluster's own choice")
    time: str = Field("24:00:00", description="limit of a task, as sbatch takes it")
    cpus: int = Field(1, ge=1, description="processors of a task")
    memory_gb: int = Field(4, ge=1, description="memory for a processor, GB")
    setup: str = Field("", description="shell line that enters the environment on a node (source .../bin/activate)")
    options: dict[str, str] = Field({}, description="further options of sbatch, by their long names")
    asked_every: float = Field(10.0, gt=0, description="time between two looks at the queue, seconds")

    def launch(self, pipeline: Sequence[Any], tasks: int, workers: int, logs: str) -> None:
        """As Clustered.launch. RunError without sbatch and squeue."""
        require_datatrove()
        lacks = [name for name in ("sbatch", "squeue") if shutil.which(name) is None]
        if lacks:
            raise RunError(f"data.executor slurm: no {' and '.join(lacks)} here; run it on a login node of the cluster")
        quiet_datatrove()
        from datatrove.executor import SlurmPipelineExecutor

        executor = SlurmPipelineExecutor(
            list(pipeline), tasks=tasks, time=self.time, partition=self.partition, cpus_per_task=self.cpus,
            mem_per_cpu_gb=self.memory_gb, workers=workers or -1, job_name="hildanext", qos="",
            env_command=self.setup or None, sbatch_args=dict(self.options), logging_dir=logs,
        )  # fmt: skip
        executor.run()
        while executor.job_id not in (None, -1) and _queued(str(executor.job_id)):
            time.sleep(self.asked_every)


def _queued(job: str) -> bool:
    found = subprocess.run(["squeue", "-h", "-j", job], capture_output=True, text=True)
    return bool(found.stdout.strip())
