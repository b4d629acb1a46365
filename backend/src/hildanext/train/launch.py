# How a training run is started on many machines: torchrun's line, a Slurm script or a Kubernetes JobSet around it.
# Entry points: Started, FORMS.
# torchrun does the work: agents meet on the first machine, start the ranks, and start all of them again where one
# fails; train.resume=auto makes a start the going on from the newest whole checkpoint. Schedulers replace machines.
"""Launching a training run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from hildanext.config.launch import LaunchConfig
from hildanext.errors import ConfigError
from hildanext.run_dir import TRAINING

TERMINATED_BEFORE = 120
SHARED_MEMORY = "16Gi"
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Set to 1: otherwise an agent in a lost one's place waits in vain for the address of the first (torch 2.13)."""


@dataclass(frozen=True)
class Started:
    """What is to be started: a subcommand that trains, its configuration file (empty: defaults) and --set values, and
    its run directory, which every machine reaches."""

    command: str
    config: str
    values: tuple[str, ...]
    run: str
    launch: LaunchConfig

    def __post_init__(self) -> None:
        if self.command not in TRAINING:
            raise ConfigError(f"launch: {self.command} does not train; one of {', '.join(TRAINING)} does")
        if not self.run:
            raise ConfigError("launch: needs --run-dir, a directory that every machine reaches")

    @property
    def name(self) -> str:
        """Of the job: the last part of the run directory, as a host name may be."""
        last = self.run.rstrip("/").rpartition("/")[2]
        return re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:40].rstrip("-") or "hildanext"

    def arguments(self, endpoint: str, identity: str) -> list[str]:
        """The words of torchrun's line. endpoint: host:port of the first machine."""
        own = self.launch
        nodes = f"{own.least}:{own.nodes}" if own.least not in (0, own.nodes) else str(own.nodes)
        words = [
            "torchrun", "--nnodes", nodes, "--nproc-per-node", str(own.processes), "--max-restarts", str(own.restarts),
            "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", identity,
            "-m", "hildanext", self.command,
        ]  # fmt: skip
        words += ["--config", self.config] if self.config else []
        kept = [value for value in self.values if not value.startswith(("launch.", "train.resume="))]
        words += [word for value in kept for word in ("--set", value)]
        return [*words, "--run-dir", self.run, "--set", "train.resume=auto"]


def torchrun(started: Started) -> str:
    """The line to run on every machine; HOST is the first of them."""
    host = "localhost" if started.launch.nodes == 1 else "HOST"
    return f"{OWN_STORE}=1 {shlex.join(started.arguments(f'{host}:{started.launch.port}', started.name))}\n"


def slurm(started: Started) -> str:
    """A script for sbatch: one agent a machine. A lost machine does not end the others (least decides whether they go
    on); a job that Slurm requeues goes on from its newest checkpoint."""
    own = started.launch
    options = {
        "job-name": started.name, "nodes": own.nodes, "ntasks-per-node": 1, "cpus-per-task": own.cpus * own.processes,
        "mem": f"{own.memory_gb}G", "time": own.time, "signal": f"TERM@{TERMINATED_BEFORE}", "requeue": "",
        "no-kill": "", "open-mode": "append", "output": f"{started.name}-%j.log",
    }  # fmt: skip
    options |= {"gpus-per-node": own.processes} if own.gpus else {}
    options |= {"partition": own.partition} if own.partition else {}
    lines = [f"#SBATCH --{name}={value}" if value != "" else f"#SBATCH --{name}" for name, value in options.items()]
    words = started.arguments("ENDPOINT", "IDENTITY")
    line = shlex.join(words).replace("ENDPOINT", f'"$head:{own.port}"', 1).replace("IDENTITY", '"$SLURM_JOB_ID"', 1)
    return "\n".join([
        "#!/bin/bash", *lines,
        "set -eo pipefail", *(["# shellcheck disable=SC1090,SC1091", own.setup] if own.setup else []), "set -u",
        'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)',
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-" + str(own.cpus) + "}",
        f"export {OWN_STORE}=1",
        f"exec srun --kill-on-bad-exit=0 {line}", "",
    ])  # fmt: skip


def kubernetes(started: Started) -> str:
    """A JobSet (jobset.sigs.k8s.io) of one indexed Job: a pod a machine, named by the JobSet's own service. A failed
    agent starts again in its pod, a lost pod is replaced."""
    import yaml

    return str(yaml.safe_dump(jobset(started), sort_keys=False, width=1000))


def jobset(started: Started) -> dict[str, Any]:
    """The manifest as an object."""
    own, name = started.launch, started.name
    if not PurePosixPath(own.mount, started.run).is_relative_to(own.mount):
        raise ConfigError(
            f"launch.mount: the run directory {started.run} is not in {own.mount}, the only folder that pods share;"
            " give one below it, or set launch.mount"
        )
    size = {"cpu": str(own.cpus * own.processes), "memory": f"{own.memory_gb}Gi"}
    size |= {"nvidia.com/gpu": str(own.processes)} if own.gpus else {}
    container = {
        "name": "trainer", "image": own.image, "workingDir": own.mount,
        "command": started.arguments(f"{name}-node-0-0.{name}:{own.port}", name),
        "env": [{"name": "OMP_NUM_THREADS", "value": str(own.cpus)}, {"name": OWN_STORE, "value": "1"}],
        "ports": [{"name": "agents", "containerPort": own.port, "protocol": "TCP"}],
        "resources": {"requests": dict(size), "limits": dict(size)},
        "volumeMounts": [{"name": "work", "mountPath": own.mount}, {"name": "shm", "mountPath": "/dev/shm"}],
    }  # fmt: skip
    volumes = [
        {"name": "work", "persistentVolumeClaim": {"claimName": own.claim}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}},
    ]
    pod = {
        "restartPolicy": "OnFailure", "terminationGracePeriodSeconds": TERMINATED_BEFORE,
        "automountServiceAccountToken": False, "containers": [container], "volumes": volumes,
    }  # fmt: skip
    job = {
        "parallelism": own.nodes, "completions": own.nodes, "completionMode": "Indexed",
        "backoffLimit": max(1, own.restarts) * own.nodes,
        "template": {"metadata": {"labels": {"app.kubernetes.io/name": name}}, "spec": pod},
    }  # fmt: skip
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet",
        "metadata": {"name": name, "namespace": own.namespace},
        "spec": {
            "network": {"enableDNSHostnames": True}, "failurePolicy": {"maxRestarts": own.restarts},
            "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": job}}],
        },
    }  # fmt: skip


FORMS: dict[str, Callable[[Started], str]] = {"torchrun": torchrun, "slurm": slurm, "kubernetes": kubernetes}
"""What writes the start of a run, by name."""
