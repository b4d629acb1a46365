# Settings of eval, export, merge-checkpoints and inspect: what is done with a model that exists.
# Entry points: EvalConfig, ExportConfig, MergeConfig, InspectConfig, TaskSection, ExportSection.
# Counts are items of a task unless a description says otherwise.
"""Sections of the commands that look at models or pack them."""

from typing import ClassVar, Literal

from pydantic import Field

from hildanext.config.base import PluginSection, Section


class TaskSection(PluginSection):
    """An evaluation task: {"type": plugin of measure/tasks, ...fields}."""

    kind: ClassVar[str] = "tasks"


class ExportSection(PluginSection):
    """An export format: {"type": plugin of export, ...fields}."""

    kind: ClassVar[str] = "exports"


class EvalConfig(Section):
    """eval: which tasks, over what, and how text is generated for them."""

    tasks: tuple[TaskSection, ...] = Field((TaskSection(type="storyworld"),), description="tasks to run, in order")
    generator: Literal["auto", "diffusion", "autoregressive"] = Field(
        "auto", description="decoder of generating tasks; auto: autoregressive for a folder that was never converted"
    )
    samples: int = Field(5, ge=0, description="items per task kept in the report")
    against: tuple[str, ...] = Field(
        (), description="earlier eval runs or their report files, to stand beside this one"
    )


class ExportConfig(Section):
    """export: the format and where it goes."""

    format: ExportSection = Field(ExportSection(type="huggingface"), description="export plugin")
    output: str = Field("", description="folder to write; empty: <paths.models>/exports/<name>")


class MergeConfig(Section):
    """merge-checkpoints: the run, its members and where the mean goes."""

    run: str = Field("", description="run directory (runs/<id>); empty: the one of model.path")
    best: int = Field(3, ge=1, description="checkpoints of lowest evaluation NLL averaged, a count")
    last: int = Field(0, ge=0, description="newest checkpoints averaged instead of the best, a count; 0: the best")
    members: tuple[str, ...] = Field((), description="checkpoints by name or model folders, instead of the best")
    output: str = Field("", description="folder to write; empty: <run>/merged")


class InspectConfig(Section):
    """inspect: what model.path is compared with."""

    against: str = Field(
        "", description="model folder whose tensors are compared with those of model.path; empty: none"
    )
    parity: bool = Field(True, description="load the model and compare its logits with the parent architecture's")
