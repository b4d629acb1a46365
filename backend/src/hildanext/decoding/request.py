# What is asked of a decoder and what comes back: request, metrics, result.
# Entry points: Request (and Request.of, which turns mistakes into DecodeError), Metrics, Result.
# tau_mask, tau_edit: "preset" takes the mode's value; tau_edit None turns editing off, 0.0 edits freely.
"""Records of one generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError

from hildanext.config.base import Section
from hildanext.config.decode import PolicySection, Share
from hildanext.config.nearest import describe
from hildanext.decoding.policy import BlockPolicy
from hildanext.errors import DecodeError

FinishReason = Literal["eos", "stop", "length", "cancelled"]


class Request(Section):
    """One generation. Exactly one of prompt, prompt_ids, messages; a field at None takes the configuration's value."""

    prompt: str | None = Field(None, description="text to continue, or the text with gaps when infill is on")
    prompt_ids: tuple[int, ...] | None = Field(None, description="token ids to continue")
    messages: tuple[Mapping[str, Any], ...] | None = Field(None, description="chat turns {role, content}")
    mode: str | None = Field(None, description="S_MODE | Q_MODE | CONSERVATIVE")
    tau_mask: Share | Literal["preset"] = Field("preset", description="probability a mask must exceed to be filled")
    tau_edit: Share | Literal["preset"] | None = Field("preset", description="probability a rewrite must exceed")
    max_new_tokens: int | None = Field(None, ge=1, description="tokens to generate at most")
    seed: int | None = Field(None, description="seed of sampling")
    sample: int = Field(0, ge=0, description="index of this sample among repeats of one prompt")
    temperature: float | None = Field(None, ge=0.0, description="0: greedy")
    top_k: int | None = Field(None, ge=0, description="tokens kept, a count; 0: all")
    top_p: float | None = Field(None, gt=0.0, le=1.0, description="probability mass kept")
    cfg_scale: float | None = Field(None, ge=0.0, description="guidance away from the prompt-less prediction; 0: none")
    stop: tuple[str, ...] = Field((), description="strings that end the text; they are not part of it")
    block: int | None = Field(None, ge=1, description="block size, tokens")
    policy: PolicySection | None = Field(None, description="another policy than the mode's")
    overrides: Mapping[str, Any] = Field({}, description="single fields of the policy")
    trace: bool = Field(False, description="keep the canvas after every step in the result")
    infill: bool = Field(False, description="fill the gaps marked <gap:N> in the prompt")
    ignore_eos: bool = Field(False, description="go on to max_new_tokens whatever is generated")

    @classmethod
    def of(cls, **values: Any) -> Request:
        """The request, or DecodeError naming every unknown or impossible argument. policy: a section, or the object."""
        made = values.pop("policy") if isinstance(values.get("policy"), BlockPolicy) else None
        try:
            request = cls.model_validate(values)
        except ValidationError as error:
            raise DecodeError("request: " + "; ".join(describe(error, cls, ""))) from error
        given = [name for name in ("prompt", "prompt_ids", "messages") if getattr(request, name) is not None]
        if len(given) != 1:
            raise DecodeError(f"request: give exactly one of prompt, prompt_ids, messages, not {given or 'none'}")
        if any(not text for text in request.stop):
            raise DecodeError("stop: an empty string would stop at once; leave it out")
        return request if made is None else request.model_copy(update={"policy": made})


@dataclass(frozen=True)
class Metrics:
    """What a generation cost. forwards counts every forward the request took part in, prefill and commits too; the
    tuples have one entry per denoising step; mask_share in [0, 1] is of the active block after the step."""

    forwards: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    steps: int = 0
    tokens_per_forward: float = 0.0
    seconds: float = 0.0
    first_block_seconds: float = 0.0
    tokens_per_second: float = 0.0
    peak_bytes: int = 0
    policy: str = ""
    block: int = 0
    mask_share: tuple[float, ...] = ()
    edits_proposed: tuple[int, ...] = ()
    edits_applied: tuple[int, ...] = ()
    edits_reverted: tuple[int, ...] = ()


@dataclass(frozen=True)
class Result:
    """A finished generation. text holds nothing after EOS, a stop string or the limit; token_ids keep the first EOS.
    exact: every number came from an exact cache; preset: mode, where its values come from, and the values used."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    metrics: Metrics
    engine: str = "transformers"
    reasons: tuple[str, ...] = ()
    exact: bool = True
    preset: Mapping[str, Any] | None = None
    trace: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the trace."""
        return {name: value for name, value in asdict(self).items() if name != "trace"}
