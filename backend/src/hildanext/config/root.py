# The whole configuration: one field per section.
# Entry points: Config, PathsConfig, RuntimeConfig, config_schema, OWNED.
# Each section is declared in its own file beside this one.
"""Root of the configuration."""

from typing import Any

from pydantic import Field

from hildanext.config.base import Section
from hildanext.config.bench import BenchConfig
from hildanext.config.data import DataConfig, TokenizeConfig
from hildanext.config.decode import DecodeConfig
from hildanext.config.eval import EvalConfig, ExportConfig, InspectConfig, MergeConfig
from hildanext.config.model import ModelConfig
from hildanext.config.serve import ServeConfig
from hildanext.config.train import LadderConfig, ObjectiveSection, OptimizerConfig, TrainConfig


class PathsConfig(Section):
    """Project folders, relative to the working directory; requests to the server are confined to them."""

    data: str = Field("data", description="folder of raw, processed and tokenized data")
    models: str = Field("models", description="folder of model folders and exports")
    runs: str = Field("runs", description="folder of run directories")


class RuntimeConfig(Section):
    """Threads of the process."""

    threads: int = Field(0, ge=0, description="torch threads; 0: the number of usable cores")


class Config(Section):
    """Everything a command reads."""

    description: str = Field("", description="what this configuration is for, one line")
    seed: int = Field(0, ge=0, description="seed of every random stream")
    paths: PathsConfig = PathsConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    data: DataConfig = DataConfig()
    tokenize: TokenizeConfig = TokenizeConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveSection = ObjectiveSection(type="mask_and_edit")
    ladder: LadderConfig = LadderConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()
    serve: ServeConfig = ServeConfig()
    eval: EvalConfig = EvalConfig()
    export: ExportConfig = ExportConfig()
    merge: MergeConfig = MergeConfig()
    inspect: InspectConfig = InspectConfig()
    bench: BenchConfig = BenchConfig()


OWNED = {"bench": "bench", "merge": "merge-checkpoints", "inspect": "inspect"}
"""Sections that one command alone reads, by that command: the saved configuration of another leaves them out."""


def config_schema() -> dict[str, Any]:
    """The JSON Schema of the whole configuration; plugin sections are open objects with a `type`."""
    return Config.model_json_schema()
