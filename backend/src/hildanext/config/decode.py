# Settings of generation: what a request may say (declared once, for every interface), modes, limits of the decoder.
# Entry points: Asked, DecodeConfig, PolicySection, ModeSection, MODES, Share (a number in [0, 1]).
# tau_* are probabilities; "preset" takes the mode's or the model folder's own value; tau_edit null: no editing.
# Every bound of a request's value stands here: command line, Python, both HTTP interfaces and files share it.
"""Decoding section of the configuration."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Generic, Literal, Never, TypeVar, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from hildanext.config.base import PluginSection, Section

MOST_TOKENS = 1 << 20
MOST_SEED = (1 << 63) - 1
MOST_FIELDS = 32
MOST_WINDOW_BLOCKS = 64
NEVER = 2.0
"""A share that no block reaches."""
WINDOW = ("window_blocks", "tau_add", "tau_semi", "tau_stable")
COLDEST = 1e-5
"""Below this temperature the likeliest token is taken: logits are divided by it."""
FRESH = -1

Unset = TypeVar("Unset")
T = TypeVar("T", bound=Section)
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Temperature = Annotated[
    float, Field(ge=0.0, le=100.0), AfterValidator(lambda given: given if given >= COLDEST else 0.0)
]
Scalar = bool | int | float | str | None


class PolicySection(PluginSection):
    """How tokens are chosen: {"type": plugin of decoding/policies, ...fields}."""

    kind: ClassVar[str] = "policies"
    by_name: ClassVar[bool] = True


def _section(value: Any) -> Any:
    if isinstance(value, str):
        return {"type": value}
    if isinstance(value, Mapping):
        if len(value) > MOST_FIELDS:
            raise ValueError(f"{len(value)} fields, at most {MOST_FIELDS} are read")
        wrong = [name for name, item in value.items() if isinstance(item, float) and not math.isfinite(item)]
        if wrong:
            raise ValueError(f"{wrong[0]}: no finite number")
    return value


class CarrySection(PluginSection):
    """What positions carry between forwards: {"type": plugin of core/carries, ...fields}."""

    kind: ClassVar[str] = "carries"
    by_name: ClassVar[bool] = True


class KVSection(PluginSection):
    """Which keys of its prefix a block sees: {"type": plugin of decoding/compressors, ...fields}."""

    kind: ClassVar[str] = "compressors"
    by_name: ClassVar[bool] = True


Policy = Annotated[PolicySection, BeforeValidator(_section, json_schema_input_type=str | PolicySection)]

CarryOver = Annotated[CarrySection, BeforeValidator(_section, json_schema_input_type=str | CarrySection)]

Compression = Annotated[KVSection, BeforeValidator(_section, json_schema_input_type=str | KVSection)]


class Asked(Section, Generic[Unset]):
    """What a request may say about decoding and the configuration says for those that do not. Unset is None in a
    request (the configuration's value then) and nothing in the configuration, whose defaults are those given here."""

    mode: Annotated[str, Field(max_length=64)] | Unset = Field(
        "Q_MODE", description="S_MODE (speedy) | Q_MODE (quality) | CONSERVATIVE | another of decode.modes"
    )
    policy: Policy | None = Field(
        None, description="another policy than the mode's: its name, or {type, ...fields of that policy}"
    )
    carry: CarryOver | None = Field(
        None, description="what masked positions carry to a block's next forward: rcd, iter_smooth, soft or {type, ...}"
    )
    kv: Compression | None = Field(
        None, description="approximate attention: mage, window, knorm, kvzap, sub_blocks or {type, ...}; null: exact"
    )
    tau_mask: Share | Literal["preset"] = Field("preset", description="probability a mask must exceed to be filled")
    tau_edit: Share | Literal["preset"] | None = Field(
        "preset", description="probability a rewrite must exceed; 0: edit freely; null: no editing"
    )
    window_blocks: Annotated[int, Field(ge=1, le=MOST_WINDOW_BLOCKS)] | Literal["preset"] = Field(
        "preset", description="blocks open at once at most, a count; 1: one after the other"
    )
    tau_add: Annotated[float, Field(ge=0.0, le=NEVER)] | Literal["preset"] = Field(
        "preset", description="filled share of the last open block at which the next one opens; above 1: never"
    )
    tau_semi: Share | Literal["preset"] = Field(
        "preset", description="filled share of the block before at which a later block must fill a mask per forward"
    )
    tau_stable: Share | Literal["preset"] = Field(
        "preset", description="share of the last open block's tokens that its last look agreed with, to open the next"
    )
    max_new_tokens: Tokens | Unset = Field(128, description="tokens to generate at most")
    seed: Annotated[int, Field(ge=FRESH, le=MOST_SEED)] | Unset = Field(
        0, description="seed of sampling; -1: a fresh one, told in the result"
    )
    temperature: Temperature | Unset = Field(0.0, description="of sampling; 0, or below 0.00001: greedy")
    top_k: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | Unset = Field(
        0, description="tokens kept before sampling, a count; 0: all"
    )
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | Unset = Field(
        1.0, description="probability mass kept before sampling"
    )
    cfg_scale: Annotated[float, Field(ge=0.0, le=100.0)] | Unset = Field(
        0.0, description="guidance away from the prompt-less prediction; 0: none"
    )
    thinking: bool | Unset = Field(
        False, description="a chat's reply begins with a thought, where the chat template has a switch for it"
    )


def unasked(model: type[T]) -> type[T]:
    """Class decorator of a request: a field whose value may be unset begins as None, not as the configuration's."""
    for name, field in model.model_fields.items():
        declared = Asked.model_fields.get(name)
        if declared is not None and Unset in get_args(declared.annotation):
            field.default = None
    model.model_rebuild(force=True)
    return model


class ModeSection(PolicySection):
    """The values a mode gives: fields of its policy, threshold_edit unless it names another."""

    type: str = "threshold_edit"

    def values(self) -> dict[str, Any]:
        """The fields given, and the policy where it is another than the default."""
        return self.model_dump(exclude_defaults=True)


MODES: Mapping[str, Mapping[str, Any]] = {
    "S_MODE": {"tau_mask": 0.5, "tau_edit": 0.0, "max_post_steps": 16},
    "Q_MODE": {"tau_mask": 0.7, "tau_edit": 0.5, "max_post_steps": 16},
    "CONSERVATIVE": {"tau_mask": 0.95, "tau_edit": 0.9, "max_post_steps": 16},
}


def _with_built_in(given: Mapping[str, ModeSection]) -> dict[str, ModeSection]:
    found = {name: ModeSection.model_validate(values) for name, values in MODES.items()}
    for name, section in given.items():
        below = found[name].model_dump() if name in found and found[name].type == section.type else {}
        found[name] = ModeSection.model_validate({**below, **section.model_dump()})
    return found


Modes = Annotated[
    dict[Annotated[str, Field(pattern=r"^[A-Za-z][\w.-]{0,63}$")], ModeSection], AfterValidator(_with_built_in)
]


class DecodeConfig(Asked[Never]):
    """generate: defaults of a request, then the modes and the limits of the decoder."""

    modes: Modes = Field(
        {},
        validate_default=True,
        description="modes by name, over S_MODE (speedy), Q_MODE (quality) and CONSERVATIVE: {field: value}",
    )
    max_post_steps: Annotated[int, Field(ge=0)] | Literal["preset"] = Field(
        "preset", description="looks at a block without masks, a count; 0: edits only while masks remain"
    )
    confidence: Literal["sampled", "raw"] = Field(
        "raw", description="distribution a drawn token's confidence is read from: the model's own, or after the cuts"
    )
    block: int = Field(0, ge=0, description="block size, tokens; 0: the model folder's, else 32")
    window: int = Field(0, ge=0, description="prompt + new tokens at most; 0: the model's own window")
    cache: bool = Field(True, description="keep keys and values of committed blocks; off recomputes everything")
    fuse: bool = Field(True, description="commit a block in the same forward as the next block's first step")
    requests: int = Field(8, ge=1, description="requests decoded together at most, a count")
    step_tokens: int = Field(2048, ge=1, description="positions of one forward at most, a count")
    prefill_tokens: int = Field(
        512,
        ge=1,
        description="prompt positions of one forward at most while others decode, a count; they go on between",
    )
    kv_bytes: int = Field(4 << 30, ge=1, description="bytes of keys and values at most")
    prefix_bytes: int = Field(
        1 << 30,
        ge=0,
        description="of kv_bytes at most for finished blocks with which later requests may begin; 0: none are kept",
    )
    int8: bool = Field(False, description="int8 dynamic quantisation of the linear layers (CPU, approximate weights)")
