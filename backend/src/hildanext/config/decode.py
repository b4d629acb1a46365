# Settings of generation: mode presets, thresholds, length, sampling.
# Entry points: DecodeConfig, PolicySection.
# tau_* are probabilities; None takes the mode's (or the model folder's own calibrated) value.
"""Decoding section of the configuration."""

from typing import ClassVar

from pydantic import Field

from hildanext.config.base import PluginSection, Section


class PolicySection(PluginSection):
    """How tokens are chosen: {"type": plugin of decoding/policies, ...fields}."""

    kind: ClassVar[str] = "policies"


class DecodeConfig(Section):
    """generate: defaults of a request."""

    mode: str = Field("Q_MODE", description="S_MODE (speedy) | Q_MODE (quality) | CONSERVATIVE")
    max_new_tokens: int = Field(128, ge=1, description="tokens to generate at most")
    seed: int = Field(0, description="seed of sampling")
