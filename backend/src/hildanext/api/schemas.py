# Bodies of the native API: unknown keys refused, no NaN; what they ask for is derived from the decoder's request.
# Entry points: StrictBody, carries, asked_in, GenerateBody, GenerateReply, Health, JobBody, JobKinds, JobReply.
# Limits that the configuration sets (lengths, counts, modes) are checked when a request is admitted.
"""Schemas of requests and replies."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, create_model, model_validator

from hildanext.command_files import job_kinds
from hildanext.config.decode import Tokens
from hildanext.config.nearest import nearest
from hildanext.decoding.request import Request, TokenId, names_in

Body = TypeVar("Body", bound=BaseModel)


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


def carries(interface: str) -> Callable[[type[Body]], type[Body]]:
    """Class decorator: the body with every field of a request under the name this interface gives it (names_in), but
    for those the body declares in a form of its own."""

    def derived(body: type[Body]) -> type[Body]:
        named = {name: Request.model_fields[field] for field, name in names_in(interface).items()}
        fields: dict[str, Any] = {
            name: (field.annotation, copy(field)) for name, field in named.items() if name not in body.model_fields
        }
        return create_model(body.__name__, __base__=body, __module__=body.__module__, __doc__=body.__doc__, **fields)

    return derived


def asked_in(body: BaseModel, interface: str) -> dict[str, Any]:
    """What a body asks for, by the names of a request."""
    return {field: getattr(body, name) for field, name in names_in(interface).items()}


class Message(StrictBody):
    """One chat turn."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="who speaks")
    content: str = Field(description="what is said")
    name: str | None = Field(None, max_length=64, description="accepted, not used")

    def turn(self) -> dict[str, str]:
        """The turn as chat templates know it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


@carries("native")
class GenerateBody(StrictBody):
    """POST /generate. Exactly one of prompt, prompt_ids, messages."""

    model: str | None = Field(None, max_length=400, description="a name from /v1/models; null: the first of them")
    messages: list[Message] | None = Field(None, min_length=1, max_length=1000, description="chat turns")
    stream: bool = Field(False, description="server-sent events draft, commit and done instead of one JSON object")

    @model_validator(mode="after")
    def _one_prompt(self) -> GenerateBody:
        given = [name for name in ("prompt", "prompt_ids", "messages") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of prompt, prompt_ids, messages, not {' and '.join(given) or 'none'}")
        if given == ["prompt_ids"] and not getattr(self, given[0]):
            raise ValueError("prompt_ids: no token id; give at least one")
        return self

    def values(self) -> dict[str, Any]:
        """Fields of the decoder's request."""
        turns = None if self.messages is None else tuple(message.turn() for message in self.messages)
        return asked_in(self, "native") | {"messages": turns}


class GenerateReply(BaseModel):
    """A finished generation. metrics: forwards, tokens per forward (as it was and unfused), positions, seconds and the
    per-step counts; reasons: why earlier engines of the order did not serve."""

    text: str
    token_ids: list[int]
    finish_reason: Literal["eos", "stop", "length", "cancelled"]
    metrics: dict[str, Any]
    engine: str
    reasons: list[str]
    exact: bool
    preset: dict[str, Any] | None
    notes: list[str] = []
    seed: int | None = None
    record: list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] = []
    said: str | None = None
    trace: list[dict[str, Any]] | None = None


class ScoreBody(StrictBody):
    """POST /score: texts behind one context, or behind one each."""

    model: str | None = Field(None, max_length=400, description="a name from /v1/models; null: the first of them")
    texts: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1, max_length=256, description="what is scored")
    context: str | list[TokenId] = Field("", description="text, or token ids, that all of them continue")
    contexts: list[str | list[TokenId]] | None = Field(None, max_length=256, description="one for each instead")
    kind: Literal["bound", "autoregressive"] = Field(
        "bound", description="block bound (negative ELBO) on -log p, or -log p read left to right"
    )
    samples: Annotated[int, Field(ge=0, le=1024, multiple_of=2)] = Field(
        16, description="draws of noise per block, an even count; 0: exact, to 8 scored tokens of a block"
    )
    block: Tokens | None = Field(None, description="block size, tokens; null: the model's own")
    values: bool = Field(False, description="give the terms of each token too")

    def pairs(self) -> list[tuple[str | list[int], str]]:
        """(context, text) of each."""
        return list(zip(self.contexts or [self.context] * len(self.texts), self.texts, strict=True))

    @model_validator(mode="after")
    def _one_each(self) -> ScoreBody:
        if self.contexts is not None and (len(self.contexts) != len(self.texts) or self.context):
            raise ValueError("contexts: give one for each of texts, and no context beside them")
        return self


class ScoreReply(BaseModel):
    """Of each text, in order: nats, tokens, nats_per_token, standard_error (null: unknown), exact; where asked values:
    id, text and nats of each token."""

    model: str
    engine: str
    kind: Literal["bound", "autoregressive"]
    block: int
    scores: list[dict[str, Any]]


class Health(BaseModel):
    """GET /health. fallback: the engine is not the first of the configured order, for the reasons given; models: every
    model served with its state; draining: stopping, what runs is finished."""

    status: Literal["loading", "ready", "degraded", "draining", "failed", "stopped"]
    problem: str
    engine: str | None
    fallback: bool
    reasons: list[str]
    capability: dict[str, Any] | None
    model: dict[str, Any] | None
    models: list[dict[str, Any]]
    queue: dict[str, int]
    jobs: dict[str, int]
    uptime_seconds: float
    version: str


class Modes(BaseModel):
    """GET /modes: the presets and the server's defaults and limits, for clients that draw controls."""

    modes: dict[str, dict[str, Any]]
    default: dict[str, Any]
    limits: dict[str, Any]


def _known_kind(command: str) -> str:
    kinds = job_kinds()
    if command not in kinds:
        raise ValueError(f"no kind of job {command[:80]!r}, {nearest(command, kinds)}")
    return command


class JobBody(StrictBody):
    """POST /jobs: a command of the command line, everything it takes as configuration values."""

    command: Annotated[str, AfterValidator(_known_kind), Field(json_schema_extra={"enum": list(job_kinds())})] = Field(
        description="subcommand; GET /jobs/kinds lists them with what they read"
    )
    config: Annotated[str, Field(min_length=1, max_length=1000)] | None = Field(
        None, description="JSON configuration file within runs, models or data"
    )
    set: list[Annotated[str, Field(min_length=3, max_length=2000)]] = Field(
        [], max_length=64, description="overrides a.b=value, as after --set"
    )


class JobField(BaseModel):
    """One configuration value a kind of job reads."""

    place: str
    description: str
    default: Any


class JobKind(BaseModel):
    """A command that may run as a job, and the configuration values it reads; plan: POST /jobs/plan tells ahead what it
    would do."""

    command: str
    help: str
    plan: bool = False
    fields: list[JobField]


class JobKinds(BaseModel):
    """GET /jobs/kinds."""

    kinds: list[JobKind]


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
    plan: dict[str, Any] | None = None


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
