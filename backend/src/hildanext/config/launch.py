# Settings of launch, read by that command only: how many machines, what each has, what their scheduler is told.
# Entry points: LaunchConfig.
# A node is a machine with one torchrun agent; a rank is a process of it.
"""Launch section of the configuration."""

from pydantic import Field, model_validator

from hildanext.config.base import Section


class LaunchConfig(Section):
    """launch: the machines of a training run."""

    nodes: int = Field(1, ge=1, description="machines, a count")
    least: int = Field(
        0, ge=0,
        description="machines the run goes on with when others are lost; 0: all, it waits for another in their place",
    )  # fmt: skip
    processes: int = Field(8, ge=1, description="ranks of a machine: one for each of its GPUs")
    gpus: bool = Field(True, description="a rank has a GPU; off: processors only")
    restarts: int = Field(3, ge=0, description="times the ranks are started again after a failure")
    port: int = Field(29500, ge=1024, le=65535, description="where the agents meet, on the first machine")
    cpus: int = Field(8, ge=1, description="processors of a rank")
    memory_gb: int = Field(64, ge=1, description="memory of a machine, GB")
    time: str = Field("24:00:00", description="slurm: limit of the job; a checkpoint is saved two minutes before it")
    partition: str = Field("", description="slurm: partition; empty: the cluster's own choice")
    setup: str = Field("", description="slurm: shell line that enters the environment on a machine")
    image: str = Field("hildanext:latest", description="kubernetes: container image with this package")
    claim: str = Field("hildanext", description="kubernetes: persistent volume claim with data, models and runs")
    mount: str = Field("/work", description="kubernetes: where the claim is mounted and the command starts")
    namespace: str = Field("default", description="kubernetes: namespace")

    @model_validator(mode="after")
    def _fewer(self) -> "LaunchConfig":
        if self.least > self.nodes:
            raise ValueError(f"least: {self.least} machines of {self.nodes}; give at most nodes")
        return self
