# The settings that tune tries: what each engine offers times the axes, as configuration values by place.
# Entry points: Trial, trials, axes, reference.
# An axis is a place with values. Those below exist as far as the configuration has them; tune.axes adds and replaces.
# An engine names its own precisions (EnginePlugin.trials). What a request may say is said there, the rest at opening.
"""Search space of tune."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from hildanext.config import Config
from hildanext.config.places import exists, value_at
from hildanext.decoding.request import Request
from hildanext.engines.protocol import EnginePlugin
from hildanext.environment import usable_cores
from hildanext.errors import ConfigError
from hildanext.models.load import BUNDLED
from hildanext.registry import build, names

THREADS, WINDOW, MODE, BLOCK, ENGINES = (
    "runtime.threads", "decode.window_blocks", "decode.mode", "decode.block", "serve.engines",
)  # fmt: skip
REMOTE = ("sglang",)
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """One setting. engine: its section {"type": ...}; opened: values by place that a session is opened with; asked:
    fields of its requests."""

    engine: Values
    opened: Values
    asked: Values

    @property
    def values(self) -> dict[str, Any]:
        """All of it as configuration values by place, with our own decoder behind the engine should it not open."""
        own = {"type": "transformers"}
        engines = [dict(self.engine)] if self.engine["type"] in ("transformers", *BUNDLED) else [dict(self.engine), own]
        return {ENGINES: engines, **self.opened, **{f"decode.{name}": value for name, value in self.asked.items()}}

    @property
    def group(self) -> str:
        """Equal for settings that share a session."""
        return repr((sorted(self.engine.items()), sorted(self.opened.items())))

    def setting(self) -> dict[str, Any]:
        """What a reader is told: mode, block, window, dtype, threads, engine, and what else was varied."""
        said, known = self.values, {MODE, BLOCK, WINDOW, THREADS, ENGINES, "model.dtype", "decode.int8"}
        dtype = "int8" if said.get("decode.int8") else said.get("model.dtype", "its own")
        found = {
            "mode": said.get(MODE), "block": said.get(BLOCK), "window": said.get(WINDOW, 1), "dtype": dtype,
            "threads": said.get(THREADS), "engine": _named(self.engine),
        }  # fmt: skip
        return found | {place: value for place, value in said.items() if place not in known}


def _named(engine: Values) -> str:
    more = " ".join(f"{name}={value}" for name, value in engine.items() if name != "type")
    return f"{engine['type']} {more}".strip()


def axes(config: Config, block: int) -> dict[str, tuple[Any, ...]]:
    """Place -> values. block: the model's own. ConfigError for a place of tune.axes that is none."""
    cores = usable_cores()
    found: dict[str, tuple[Any, ...]] = {
        THREADS: tuple(dict.fromkeys((cores, max(1, cores // 2)))),
        WINDOW: (1, 2, 4),
        MODE: tuple(config.decode.modes),
        BLOCK: tuple(dict.fromkeys((block, 2 * block, max(2, block // 2)))),
    }
    unknown = [place for place in config.tune.axes if not exists(place)]
    if unknown:
        raise ConfigError(f"tune.axes: no place {unknown[0]!r}; name a value as `hildanext config show` prints it")
    empty = [place for place, values in config.tune.axes.items() if not values]
    if empty:
        raise ConfigError(f"tune.axes: {empty[0]} has no values; give some, or leave it out")
    return {place: values for place, values in found.items() if exists(place)} | config.tune.axes


def _engines(config: Config, wanted: Sequence[Any]) -> Iterator[tuple[Values, Values]]:
    """(section, values by place) of every engine that may be here, slowest and surest first."""
    known = {section.type: section.model_dump() for section in config.serve.engines}
    own = "tiny" if config.model.path in BUNDLED else "transformers"
    listed = [name for name in names("engines") if name not in (own, *REMOTE, "transformers", *BUNDLED)]
    for section in wanted or [known.get(name, {"type": name}) for name in (own, *listed)]:
        plugin: EnginePlugin = build("engines", section, "tune.axes")
        for values in plugin.trials(config):
            fields = values.get(ENGINES, {})
            yield {**section, **fields}, {place: value for place, value in values.items() if place != ENGINES}


def trials(config: Config, block: int) -> list[Trial]:
    """Every setting; those that share a session stand together, the reference's session first."""
    varied = axes(config, block)
    wanted = varied.pop(ENGINES, ())
    inner = {place: values for place, values in varied.items() if _asked(place)}
    outer = {place: values for place, values in varied.items() if not _asked(place)}
    found = []
    for section, offered in _engines(config, wanted):
        free = {place: values for place, values in outer.items() if place not in offered or place in config.tune.axes}
        for opened in _each(free):
            for asked in _each(inner):
                said = {place.partition(".")[2]: value for place, value in asked.items()}
                found.append(Trial(section, {**offered, **opened}, said))
    return [trial for index, trial in enumerate(found) if trial not in found[:index]]


def _asked(place: str) -> bool:
    section, _, name = place.partition(".")
    return section == "decode" and name in Request.model_fields


def _each(varied: Mapping[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for chosen in product(*varied.values()):
        yield dict(zip(varied, chosen, strict=True))


def reference(found: Sequence[Trial], config: Config) -> Trial:
    """What a user has without tuning: of the first session, the configured mode, the model's own block (the first of
    its axis), one block at a time."""
    first = [trial for trial in found if trial.group == found[0].group]
    mode = value_at(config, MODE)
    return next((trial for trial in first if trial.asked.get("mode", mode) == mode), first[0])
