# What editors speak: Ollama's /api/generate and llama.cpp's /infill, both with a text before and one behind the cursor.
# Entry points: router.
# Fields that would change the text and are not served are refused; those about a server's memory or speed are accepted.
"""Editor protocols."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field

from hildanext import __version__
from hildanext.api.gaps import Lengths, gap, lengths_of
from hildanext.api.replies import ApiError, served, told
from hildanext.api.schemas import StrictBody
from hildanext.api.state import Answering, log_result, results, server_of
from hildanext.api.streams import EVENTS, PING, event_stream
from hildanext.config.decode import FRESH, MOST_SEED, MOST_TOKENS
from hildanext.decoding.events import Commit, Done
from hildanext.decoding.request import Request, Result, Stop
from hildanext.errors import HildaError

router = APIRouter(tags=["editors"])
ERRORS = served(400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 504)
Count = Annotated[int, Field(ge=-2, le=MOST_TOKENS)]
Seed = Annotated[int, Field(ge=-1, le=MOST_SEED)]
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repeat_penalty": (1, 1.0), "presence_penalty": (0, 0.0), "frequency_penalty": (0, 0.0), "mirostat": (0,),
    "min_p": (0, 0.0), "typical_p": (1, 1.0), "tfs_z": (1, 1.0), "n_probs": (0,), "grammar": ("",),
    "logit_bias": ([],), "system": ("",), "template": ("",), "images": ([],), "format": ("",), "think": (False,),
    "context": ([],), "dynatemp_range": (0, 0.0), "top_n_sigma": (-1, -1.0), "xtc_probability": (0, 0.0),
    "dry_multiplier": (0, 0.0),
}  # fmt: skip
"""Fields that are not served, and the values that change nothing."""


class Sampling(StrictBody):
    """Fields both protocols share. Temperature left out is 0, as everywhere here."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=0, le=MOST_TOKENS)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed | None = Field(None, description="-1 or left out: a fresh one")
    stop: Annotated[list[Stop], Field(max_length=16)] | None = Field(None, description="strings that end the text")
    repeat_penalty: float | None = None
    repeat_last_n: int | None = Field(None, description="accepted, not used")
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    mirostat: int | None = None
    min_p: float | None = None
    typical_p: float | None = None

    def values(self) -> dict[str, Any]:
        """Fields of the decoder's request. ApiError 400 for one that is not served."""
        for name, neutral in NEUTRAL.items():
            if getattr(self, name, None) not in (None, *neutral):
                raise ApiError(400, f"{name}: not supported by this server; leave it out", name)
        seed = FRESH if self.seed is None else self.seed
        return {name: getattr(self, name) for name in ("temperature", "top_k", "top_p")} | {
            "seed": seed, "stop": tuple(self.stop or ()),
        }  # fmt: skip


class OllamaOptions(Sampling):
    """`options` of Ollama; what speaks of memory, threads and devices is accepted and not used."""

    num_predict: Count | None = Field(None, description="tokens at most; 0 or less: the server's default")
    tfs_z: float | None = None
    penalize_newline: bool | None = None
    num_ctx: int | None = None
    num_keep: int | None = None
    num_batch: int | None = None
    num_gpu: int | None = None
    num_thread: int | None = None
    main_gpu: int | None = None
    use_mmap: bool | None = None
    use_mlock: bool | None = None
    low_vram: bool | None = None
    numa: bool | None = None


class OllamaBody(StrictBody):
    """POST /api/generate. A prompt is continued as it stands, as with raw; before a suffix the gap is filled."""

    model: str = Field(max_length=400, description="a name from /api/tags")
    prompt: str
    suffix: str | None = Field(None, description="text behind the gap")
    lengths: Lengths | None = Field(None, description="ours: lengths of the gap to try; null: up to num_predict")
    stream: bool = Field(True, description="JSON lines instead of one object")
    options: OllamaOptions = Field(default_factory=OllamaOptions)
    raw: bool | None = Field(None, description="accepted: nothing is put around a prompt in any case")
    keep_alive: str | float | None = Field(None, description="accepted, not used")
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[str] | None = None
    format: str | dict[str, Any] | None = None
    think: bool | str | None = None


class Extra(StrictBody):
    """A piece of another file."""

    filename: str | None = None
    text: str = ""
    time: float | None = None


class InfillBody(Sampling):
    """POST /infill of llama.cpp: input_prefix and prompt, what is written, input_suffix."""

    model: str | None = Field(None, max_length=400, description="a name from /v1/models; null: the first of them")
    input_prefix: str = Field(description="text before the cursor")
    input_suffix: str = Field(description="text behind it")
    prompt: str = Field("", description="more text before the cursor, as llama.vim sends the current line")
    input_extra: list[Extra] | None = Field(
        None, max_length=1000, description="other files: not read, and notes say so"
    )
    n_predict: Count | None = Field(None, description="tokens at most; 0 or less: the server's default")
    lengths: Lengths | None = Field(None, description="ours: lengths of the gap to try; null: up to n_predict")
    stream: bool = Field(False, description="server-sent events instead of one object")
    n_probs: int | None = None
    grammar: str | None = None
    logit_bias: list[Any] | None = None
    top_n_sigma: float | None = None
    dynatemp_range: float | None = None
    xtc_probability: float | None = None
    dry_multiplier: float | None = None
    samplers: list[str] | str | None = Field(None, description="accepted, not used: there is one order")
    n_indent: int | None = Field(None, description="accepted, not used")
    cache_prompt: bool | None = Field(None, description="accepted, not used")
    id_slot: int | None = Field(None, description="accepted, not used")
    t_max_prompt_ms: int | None = Field(None, description="accepted, not used")
    t_max_predict_ms: int | None = Field(None, description="accepted, not used")
    response_fields: list[str] | None = Field(None, description="accepted: the whole object is sent")


@router.get("/api/tags", responses=served(401, 503))
async def tags(http: HttpRequest) -> dict[str, Any]:
    """The models, as Ollama lists them."""
    server = server_of(http)
    server.model()
    names = [slot.name for slot in server.fleet.slots]
    return {"models": [{"name": name, "model": name, "details": {"family": "block diffusion"}} for name in names]}


@router.get("/api/version")
async def version() -> dict[str, str]:
    """Ours, where Ollama says its own."""
    return {"version": f"0.0.0-hildanext-{__version__}"}


@router.post("/api/generate", responses={**ERRORS, 200: {"content": {"application/x-ndjson": {}}}})
async def ollama(body: OllamaBody, http: HttpRequest) -> Any:
    """Ollama's generate: continue a prompt, or with a suffix fill the gap between."""
    most = body.options.num_predict
    for name in ("system", "template", "context", "images", "format", "think"):
        if getattr(body, name) not in (None, *NEUTRAL[name]):
            raise ApiError(400, f"{name}: not supported by this server; leave it out", name)
    answer = _asked(http, body.model, body.prompt, body.suffix, (body.lengths, most), body.options.values())
    if body.stream:
        await answer.admitted()
        return StreamingResponse(_lines(body, answer, http), media_type="application/x-ndjson")
    (found,) = await results([answer], http)
    log_result(http, found)
    return JSONResponse(_ollama(body, found.text, found))


@router.post("/infill", responses={**ERRORS, **EVENTS})
async def infill(body: InfillBody, http: HttpRequest) -> Any:
    """llama.cpp's infill: what stands between two texts."""
    before, tried = body.input_prefix + body.prompt, (body.lengths, body.n_predict)
    answer = _asked(http, body.model, before, body.input_suffix, tried, body.values())
    if body.stream:
        await answer.admitted()
        return event_stream(_chunks(body, answer, http))
    (found,) = await results([answer], http)
    log_result(http, found)
    return JSONResponse(_llama(body, found.text, found))


def _asked(
    http: HttpRequest, model: str | None, before: str, after: str | None, tried: tuple[Lengths | None, int | None],
    values: dict[str, Any],
) -> Answering:  # fmt: skip
    server = server_of(http)
    slot, (lengths, most) = server.model(model), tried
    most = most if most is not None and most > 0 else None
    if after:
        request = Request.of(**values, prompt=before, suffix=after)
        return gap(server, slot, request, lengths_of(lengths, most))
    if lengths:
        raise ApiError(400, "lengths: of a gap, and there is no suffix; give one, or leave lengths out", "lengths")
    return server.admit(Request.of(**values, prompt=before, max_new_tokens=most), slot)[0]


async def _lines(body: OllamaBody, answer: Answering, http: HttpRequest) -> AsyncIterator[bytes]:
    try:
        async for item in answer.events():
            if isinstance(item, Commit) and item.text:
                yield json.dumps(_ollama(body, item.text)).encode() + b"\n"
            elif isinstance(item, Done):
                log_result(http, item.result)
                yield json.dumps(_ollama(body, "", item.result)).encode() + b"\n"
    except (HildaError, ApiError) as error:
        yield json.dumps(told(error, http.url.path)).encode() + b"\n"
    finally:
        answer.cancel()


async def _chunks(body: InfillBody, answer: Answering, http: HttpRequest) -> AsyncIterator[bytes]:
    try:
        async for item in answer.events():
            if item is None:
                yield PING
            elif isinstance(item, Commit) and item.text:
                yield _data({"index": 0, "content": item.text, "tokens": [], "stop": False})
            elif isinstance(item, Done):
                log_result(http, item.result)
                yield _data(_llama(body, "", item.result))
    except (HildaError, ApiError) as error:
        yield _data(told(error, http.url.path))
    finally:
        answer.cancel()


def _data(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value)}\n\n".encode()


def _ollama(body: OllamaBody, text: str, result: Result | None = None) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    piece: dict[str, Any] = {"model": body.model, "created_at": now, "response": text, "done": result is not None}
    if result is None:
        return piece
    figures, complete = result.metrics, bool(body.suffix) or result.finish_reason != "length"
    spent = int(figures.seconds * 1e9)
    return piece | {
        "done_reason": "stop" if complete else "length", "total_duration": spent, "load_duration": 0,
        "prompt_eval_count": figures.prompt_tokens, "prompt_eval_duration": 0, "eval_count": figures.tokens,
        "eval_duration": spent, "hildanext": _ours(result),
    }  # fmt: skip


def _llama(body: InfillBody, text: str, result: Result) -> dict[str, Any]:
    figures = result.metrics
    spent, made = figures.seconds * 1e3, max(1, figures.tokens)
    kind: Literal["word", "eos", "limit"] = {"stop": "word", "eos": "eos"}.get(result.finish_reason, "limit")  # type: ignore[assignment]
    notes = [f"input_extra: {len(body.input_extra)} pieces were not read"] if body.input_extra else []
    ours = _ours(result)
    return {
        "index": 0, "content": text, "tokens": [], "id_slot": -1, "stop": True, "model": body.model or "",
        "tokens_predicted": figures.tokens, "tokens_evaluated": figures.prompt_tokens, "tokens_cached": 0,
        "has_new_line": "\n" in result.text, "truncated": False, "stop_type": kind, "stopping_word": "",
        "timings": {
            "prompt_n": figures.prompt_tokens, "prompt_ms": 0.0, "predicted_n": figures.tokens, "predicted_ms": spent,
            "predicted_per_token_ms": spent / made, "predicted_per_second": figures.tokens_per_second,
        },
        "hildanext": ours | {"notes": [*ours["notes"], *notes]},
    }  # fmt: skip


def _ours(result: Result) -> dict[str, Any]:
    figures = result.metrics
    return {
        "engine": result.engine, "exact": result.exact, "forwards": figures.forwards, "seed": result.seed,
        "notes": list(result.notes),
    }  # fmt: skip
