# Which engine serves: the first of the configured order that opens, with every reason on the way.
# Entry points: choose, brief.
# A fallback is told three times: on the console, in every result and in /health.
"""Choice of the engine."""

from __future__ import annotations

from collections.abc import Sequence

from hildanext.config import Config
from hildanext.config.serve import EngineSection
from hildanext.engines.protocol import EnginePlugin, Session
from hildanext.errors import EngineError
from hildanext.models.load import NEW, kind_at
from hildanext.models.recommended import with_recommended
from hildanext.progress import Console
from hildanext.registry import build


def choose(config: Config, console: Console) -> tuple[Session, tuple[str, ...]]:
    """The first engine of serve.engines that opens, and why earlier ones did not (`name: reason`).
    What `tune` found for model.path holds where nothing else was said. EngineError with every reason when none opens;
    ModelError where model.path leads nowhere."""
    config = with_recommended(config, console)
    reasons: list[str] = []
    for section in _sections(config):
        plugin: EnginePlugin = build("engines", section, "serve.engines")
        opening = plugin.open(config, console)
        if opening.capability.ok:
            session: Session = opening.session
            _tell(session, reasons, console)
            return session, tuple(reasons)
        reasons += [f"{section.type}: {reason}" for reason in opening.capability.reasons]
    raise EngineError(f"serve.engines: no engine opened; {'; '.join(reasons)}; change model.path or serve.engines")


def _sections(config: Config) -> tuple[EngineSection, ...]:
    listed = config.serve.engines
    if config.model.path == NEW or any(getattr(section, "instead", False) for section in listed):
        return listed
    # a path that is wrong is wrong for every engine, and said once; a kind's own engine need not be listed
    own = kind_at(config.model.path).engine
    return listed if not own or own in {section.type for section in listed} else (*listed, EngineSection(type=own))


def _tell(session: Session, reasons: list[str], console: Console) -> None:
    if reasons:
        console.say(f"engines not used: {brief(reasons)}")
    facts = session.facts
    console.say(f"engine {session.name}: {facts.model} on {facts.device}, {facts.dtype}, block {facts.block}")


def brief(reasons: Sequence[str]) -> str:
    """Each engine's first reason and how many more there are; `hildanext doctor` prints them all."""
    grouped: dict[str, list[str]] = {}
    for reason in reasons:
        name, _, text = reason.partition(": ")
        grouped.setdefault(name, []).append(text)
    more = {
        name: f" (and {len(texts) - 1} more: hildanext doctor)" if texts[1:] else "" for name, texts in grouped.items()
    }
    return "; ".join(f"{name}: {texts[0]}{more[name]}" for name, texts in grouped.items())
