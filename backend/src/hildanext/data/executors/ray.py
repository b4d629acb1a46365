# Executor `ray`: datatrove's executor over a Ray cluster that is already there.
# Entry points: Ray.
# Joins the cluster of RAY_ADDRESS, or the one of this machine. Every machine of it needs this package and reaches
# paths.data: a shared file system, or an object storage.
"""Executor plugin ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from hildanext.data.executor import Clustered, quiet_datatrove, require_datatrove
from hildanext.errors import RunError, first_line


class Ray(Clustered):
    """datatrove's pipelines as actors of a Ray cluster; those of a lost machine are started again elsewhere."""

    address: str = Field(
        "auto", description="where the cluster is: auto (RAY_ADDRESS, else this machine's) or host:port"
    )
    cpus: int = Field(1, ge=1, description="processors reserved for a task")
    memory_gb: float = Field(2.0, gt=0, description="memory reserved for a processor, GiB")
    seconds: int | None = Field(None, ge=1, description="longest time of a task before it is ended; null: no limit")

    def launch(self, pipeline: Sequence[Any], tasks: int, workers: int, logs: str) -> None:
        """As Clustered.launch."""
        require_datatrove("ray")
        import ray

        quiet_datatrove()
        from datatrove.executor import RayPipelineExecutor

        if not ray.is_initialized():
            try:
                ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, ValueError) as error:
                raise RunError(
                    f"data.executor ray: no cluster at {self.address} ({first_line(error)}); start one with `ray start`"
                ) from error
        RayPipelineExecutor(
            list(pipeline), tasks=tasks, workers=workers or -1, logging_dir=logs, cpus_per_task=self.cpus,
            mem_per_cpu_gb=self.memory_gb, time=self.seconds,
        ).run()  # fmt: skip
