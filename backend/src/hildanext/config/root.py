# The whole configuration: one field per section.
# Entry points: Config, PathsConfig, RuntimeConfig, OWNED, fields_at, config_schema.
# Each section is declared in its own file beside this one.
"""Root of the configuration."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import Field, TypeAdapter
from pydantic.fields import FieldInfo

from hildanext.config.answer import AnswerConfig
from hildanext.config.base import SEEDS, Section
from hildanext.config.bench import BenchConfig
from hildanext.config.data import DataConfig, TokenizeConfig
from hildanext.config.decode import DecodeConfig
from hildanext.config.eval import EvalConfig, ExportConfig, InspectConfig, MergeConfig
from hildanext.config.grid import GridConfig, SweepConfig
from hildanext.config.kept import AnchorsConfig, KeyScoresConfig, TrajectoriesConfig
from hildanext.config.latent import LatentConfig
from hildanext.config.launch import LaunchConfig
from hildanext.config.model import ModelConfig
from hildanext.config.nearest import model_at
from hildanext.config.rl import DpoConfig, RlConfig
from hildanext.config.serve import ServeConfig
from hildanext.config.train import LadderConfig, ObjectiveSection, OptimizerConfig, RolloutConfig, TrainConfig
from hildanext.config.tune import TuneConfig


class PathsConfig(Section):
    """Project folders, relative to the working directory; requests to the server are confined to them."""

    data: str = Field("data", description="folder of raw, processed and tokenized data, or a place for fsspec")
    models: str = Field("models", description="folder of model folders and exports")
    runs: str = Field("runs", description="folder of run directories")


class RuntimeConfig(Section):
    """Threads of the process."""

    threads: int = Field(0, ge=0, description="torch threads; 0: the number of usable cores")


class Config(Section):
    """Everything a command reads."""

    description: str = Field("", description="what this configuration is for, one line")
    seed: int = Field(0, ge=0, lt=SEEDS, description="seed of every random stream")
    paths: PathsConfig = PathsConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    data: DataConfig = DataConfig()
    tokenize: TokenizeConfig = TokenizeConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveSection = ObjectiveSection(type="mask_and_edit")
    ladder: LadderConfig = LadderConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    rollout: RolloutConfig = RolloutConfig()
    anchors: AnchorsConfig = AnchorsConfig()
    trajectories: TrajectoriesConfig = TrajectoriesConfig()
    key_scores: KeyScoresConfig = KeyScoresConfig()
    rl: RlConfig = RlConfig()
    dpo: DpoConfig = DpoConfig()
    latent: LatentConfig = LatentConfig()
    decode: DecodeConfig = DecodeConfig()
    answer: AnswerConfig = AnswerConfig()
    launch: LaunchConfig = LaunchConfig()
    serve: ServeConfig = ServeConfig()
    eval: EvalConfig = EvalConfig()
    export: ExportConfig = ExportConfig()
    merge: MergeConfig = MergeConfig()
    inspect: InspectConfig = InspectConfig()
    bench: BenchConfig = BenchConfig()
    tune: TuneConfig = TuneConfig()
    grid: GridConfig = GridConfig()
    sweep: SweepConfig = SweepConfig()


OWNED = {
    "answer": "answer", "anchors": "anchors", "trajectories": "trajectories", "key_scores": "key-scores",
    "bench": "bench", "rollout": "on-policy", "rl": "rl", "dpo": "dpo",
    "merge": "merge-checkpoints", "inspect": "inspect", "tune": "tune", "grid": "compare",
    "sweep": "sweep", "launch": "launch",
}  # fmt: skip
"""Sections that one command alone reads, by that command: the saved configuration of another leaves them out."""


@dataclass(frozen=True)
class Place:
    """One value of the configuration: where it stands, what it means, what it is where nothing is said."""

    place: str
    description: str
    default: Any


def fields_at(places: Iterable[str]) -> list[Place]:
    """The values below dotted places ("train", "model.path"), in the order of declaration. ValueError for no place."""
    found: list[Place] = []
    for place in places:
        *sections, name = place.split(".")
        section = model_at(Config, sections)
        if section is None or name not in section.model_fields:
            raise ValueError(f"config: no place {place!r}")
        found += _below(place, section.model_fields[name])
    return found


def _below(place: str, field: FieldInfo) -> Iterator[Place]:
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
        for name, inner in field.annotation.model_fields.items():
            yield from _below(f"{place}.{name}", inner)
        return
    annotation: Any = field.annotation
    default = TypeAdapter(annotation).dump_python(field.get_default(), mode="json")
    about = field.description or (annotation.__doc__ if isinstance(annotation, type) else "")
    yield Place(place, about or "", default)


def config_schema() -> dict[str, Any]:
    """The JSON Schema of the whole configuration; plugin sections are open objects with a `type`, and a key that begins
    with // is a comment anywhere."""
    schema = Config.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        if section.get("additionalProperties") is False:
            section["patternProperties"] = {"^//": {"type": "string"}}
    return schema
