# How a batch is corrupted for training: the field `noise` of the diffusion objectives.
# Entry points: NoiseConfig, ROW_NOISE (one mask rate per row, no replaced tokens).
# Rates are masking probabilities in [0, 1]; the drawing itself is in core/noise.py.
"""Noise section of the diffusion objectives."""

from typing import Literal

from pydantic import Field, model_validator

from hildanext.config.base import Section


class NoiseConfig(Section):
    """Mask rates, mask sets and replaced tokens. Defaults of `replace` are ours: the reports publish none."""

    type: Literal["mask", "random_replace"] = Field(
        "mask",
        description="what the drawn positions become: [MASK], or a random allowed token (then they count as T2T)",
    )
    unit: Literal["block", "sequence", "document"] = Field("block", description="what shares one mask rate")
    draw: Literal["bernoulli", "count"] = Field(
        "bernoulli", description="each position with probability p, or exactly ceil(p x size) positions of a unit"
    )
    low: float = Field(0.0, ge=0, le=1, description="smallest mask rate drawn, a probability")
    high: float = Field(1.0, gt=0, le=1, description="largest mask rate drawn, a probability")
    minimum: float = Field(1e-3, gt=0, lt=1, description="floor of the mask rate, a probability")
    cap: float | None = Field(
        None, ge=1, description="largest ELBO weight 1/p; null: none. With a cap the loss is no longer an ELBO"
    )
    schedule: Literal["linear", "cosine", "power", "sigmoid"] = Field(
        "linear", description="mask rate as a function of uniform time"
    )
    shape: float = Field(2.0, gt=0, description="exponent of power, sharpness of sigmoid; unused by the others")
    span: float = Field(
        0.0, ge=0, le=1, description="probability that a unit's masks are one contiguous run (cyclic), not scattered"
    )
    tilt: float = Field(
        0.0, ge=0, le=1, description="how much more the later positions of a unit are masked, their mean rate staying;"
        " with it the loss is no ELBO",
    )  # fmt: skip
    replace: float = Field(0.1, ge=0, le=1, description="share r of the visible rest replaced by random tokens (T2T)")
    may_draw_original: bool = Field(True, description="a random token may be the original one")
    group: int = Field(
        1, ge=1, description="blocks noised together at most, as a window of several blocks shows them: a block sees "
        "those before it in its group noisy, their mask rates rise from left to right; 1: every block alone",
    )  # fmt: skip
    layouts: Literal["both", "systematic", "random"] = Field(
        "both",
        description="how a row is cut into groups: equal ones from any offset, random sizes, or either at random",
    )
    complementary: bool = Field(
        False, description="also train on the view whose masks are the other maskable positions"
    )
    vocabulary: int = Field(0, ge=0, description="random tokens have ids below this; 0: every row of the output matrix")
    forbidden: tuple[int, ...] = Field((), description="ids never drawn as random tokens; [MASK] never is")

    @model_validator(mode="after")
    def _consistent(self) -> "NoiseConfig":
        top = min(self.high, 1 - self.minimum) if self.complementary else self.high
        if max(self.low, self.minimum) > top:
            raise ValueError(f"low {self.low} (floor {self.minimum}) is above high {top}; give low <= high")
        if self.draw == "count" and (self.schedule != "linear" or self.complementary):
            raise ValueError("draw=count needs schedule=linear and complementary=false; its weights hold only there")
        if self.tilt and (self.draw != "bernoulli" or self.complementary or self.group > 1):
            raise ValueError(
                "tilt needs draw=bernoulli, complementary=false, group=1: each position has a rate of its own"
            )
        if self.group > 1 and (self.unit != "block" or self.complementary or self.schedule != "linear"):
            raise ValueError(
                f"group {self.group}: rates of a group are a chain over its blocks; give unit=block, schedule=linear,"
                " complementary=false"
            )
        return self


ROW_NOISE = NoiseConfig(unit="sequence", replace=0.0)
