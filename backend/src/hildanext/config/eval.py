# Settings of eval and export.
# Entry points: EvalConfig, ExportConfig, TaskSection, ExportSection.
# Counts are items of a task unless a description says otherwise.
"""Evaluation and export sections of the configuration."""

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


class ExportConfig(Section):
    """export: the format and where it goes."""

    format: ExportSection = Field(ExportSection(type="huggingface"), description="export plugin")
    output: str = Field("", description="folder to write; empty: <paths.models>/exports/<name>")
