# Bodies of the native API: bounds, unknown keys refused, no NaN.
# Entry points: GenerateBody, GenerateReply, Health, JobBody, JobReply, ErrorReply, StrictBody.
# Limits that the configuration sets (lengths, counts) are checked by the routes; these bounds are the outermost ones.
"""Schemas of requests and replies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from hildanext.config.nearest import nearest
from hildanext.decoding.modes import MODES

MOST_TOKENS = 1 << 20
MOST_SEED = (1 << 63) - 1
Scalar = bool | int | float | str | None


class StrictBody(BaseModel):
    """A request body: exact JSON types, finite numbers, no unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _text_is_unicode(cls, values: Any) -> Any:
        if not _encodable(values):
            raise ValueError("a string holds half of a surrogate pair, which is no Unicode text")
        return values


def _encodable(values: Any) -> bool:
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            return False
    return True


def _known_mode(mode: str) -> str:
    if mode not in MODES:
        raise ValueError(f"no mode {mode!r}, {nearest(mode, MODES)}")
    return mode


Mode = Annotated[str, AfterValidator(_known_mode), Field(json_schema_extra={"enum": list(MODES)})]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]


class Message(StrictBody):
    """One chat turn."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="who speaks")
    content: str = Field(description="what is said")
    name: str | None = Field(None, max_length=64, description="accepted, not used")

    def turn(self) -> dict[str, str]:
        """The turn as chat templates know it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class GenerateBody(StrictBody):
    """POST /generate. Exactly one of prompt, prompt_ids, messages."""

    prompt: str | None = Field(None, description="text to continue")
    prompt_ids: list[Annotated[int, Field(ge=0, le=MOST_TOKENS)]] | None = Field(
        None, min_length=1, max_length=MOST_TOKENS, description="token ids to continue"
    )
    messages: list[Message] | None = Field(None, min_length=1, max_length=1000, description="chat turns")
    mode: Mode | None = Field(None, description="preset; the server's default where left out")
    tau_mask: Share | Literal["preset"] = Field("preset", description="probability a mask must exceed to be filled")
    tau_edit: Share | Literal["preset"] | None = Field(
        "preset", description="probability a rewrite must exceed; 0 edits freely, null never edits"
    )
    max_new_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS, description="tokens to generate at most")
    seed: int | None = Field(None, ge=0, le=MOST_SEED, description="seed of sampling")
    temperature: Annotated[float, Field(ge=0.0, le=100.0)] | None = Field(None, description="0: greedy")
    top_k: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = Field(None, description="tokens kept; 0: all")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(None, description="probability mass kept")
    cfg_scale: Annotated[float, Field(ge=0.0, le=100.0)] | None = Field(None, description="guidance; 0: none")
    stop: list[Stop] = Field([], max_length=16, description="strings that end the text and are not part of it")
    block: int | None = Field(None, ge=1, le=MOST_TOKENS, description="block size, tokens")
    policy: str | None = Field(None, max_length=64, description="decoding policy by name")
    overrides: dict[Annotated[str, Field(max_length=64)], Scalar] = Field(
        {}, max_length=32, description="single fields of the policy"
    )
    infill: bool = Field(False, description="fill the gaps marked <gap:N> in the prompt")
    ignore_eos: bool = Field(False, description="go on to max_new_tokens whatever is generated")
    trace: bool = Field(False, description="return the canvas after every step")
    stream: bool = Field(False, description="server-sent events draft, commit and done instead of one JSON object")

    @model_validator(mode="after")
    def _one_prompt(self) -> GenerateBody:
        given = [name for name in ("prompt", "prompt_ids", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of prompt, prompt_ids, messages, not {' and '.join(given) or 'none'}")
        return self


class GenerateReply(BaseModel):
    """A finished generation. metrics: forwards, tokens, seconds and the per-step counts; reasons: why earlier engines
    of the order did not serve."""

    text: str
    token_ids: list[int]
    finish_reason: Literal["eos", "stop", "length", "cancelled"]
    metrics: dict[str, Any]
    engine: str
    reasons: list[str]
    exact: bool
    preset: dict[str, Any] | None
    notes: list[str] = []
    trace: list[dict[str, Any]] | None = None


class Health(BaseModel):
    """GET /health. fallback: the engine is not the first of the configured order, for the reasons given."""

    status: Literal["loading", "ready", "degraded", "failed", "stopped"]
    problem: str
    engine: str | None
    fallback: bool
    reasons: list[str]
    capability: dict[str, Any] | None
    model: dict[str, Any] | None
    queue: dict[str, int]
    jobs: dict[str, int]
    uptime_seconds: float
    version: str


class Modes(BaseModel):
    """GET /modes: the presets and the server's defaults and limits, for clients that draw controls."""

    modes: dict[str, dict[str, Any]]
    default: dict[str, Any]
    limits: dict[str, Any]


class JobBody(StrictBody):
    """POST /jobs: a command of the command line, as it would be typed."""

    command: Literal[
        "prepare-data", "tokenize", "convert-wsd", "sft", "merge-checkpoints", "eval", "export"
    ] = Field(description="subcommand")  # fmt: skip
    config: Annotated[str, Field(min_length=1, max_length=1000)] | None = Field(
        None, description="JSON configuration file within runs, models or data"
    )
    set: list[Annotated[str, Field(min_length=3, max_length=2000)]] = Field(
        [], max_length=64, description="overrides a.b=value, as after --set"
    )


class JobReply(BaseModel):
    """One run. eta_seconds: None until it can be told; job: started over HTTP, so that it can be cancelled here."""

    id: str
    command: str
    state: Literal["queued", "running", "cancelling", "done", "failed", "cancelled", "lost"]
    job: bool
    step: int | None = None
    total: int | None = None
    loss: float | None = None
    eta_seconds: float | None = None
    started: str | None = None
    ended: str | None = None
    exit_code: int | None = None
    error: str | None = None
    report: dict[str, Any] | None = None


class JobList(BaseModel):
    """GET /jobs, newest first."""

    jobs: list[JobReply]


class JobLog(BaseModel):
    """The last lines of a job's log and of what it printed."""

    log: list[str]
    output: list[str]


class JobMetrics(BaseModel):
    """The last lines of metrics.jsonl."""

    metrics: list[dict[str, Any]]


class ErrorDetail(BaseModel):
    """What went wrong, in the shape OpenAI clients read."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    """Body of every reply with a status of 400 or more."""

    error: ErrorDetail
