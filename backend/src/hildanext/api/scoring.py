# The route that scores given texts: labels of a question, answers to be ranked, texts to be compared.
# Entry points: router.
# Scoring is work between the steps of the engine: what is decoded meanwhile goes on.
"""POST /score."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest

from hildanext.api.replies import ApiError, served
from hildanext.api.schemas import ScoreBody, ScoreReply
from hildanext.api.state import log_result, results, server_of
from hildanext.engines.task import Task, TaskResult
from hildanext.measure.scores import Score, Scoring, scores

router = APIRouter()


@router.post(
    "/score", response_model=ScoreReply, responses=served(400, 401, 403, 404, 408, 413, 422, 429, 500, 503, 504)
)  # fmt: skip
async def score(body: ScoreBody, http: HttpRequest) -> dict[str, Any]:
    """What the model says of given texts behind their contexts, in nats: -log p or a bound on it, of each text and of
    each of its tokens."""
    server = server_of(http)
    pairs, limit = body.pairs(), server.config.serve.prompt_characters
    characters = sum(len(context) + len(text) for context, text in pairs)
    if characters > limit:
        raise ApiError(413, f"texts: {characters} characters with their contexts, at most {limit} are read", "texts")
    how = Scoring(body.kind, body.samples, body.block or 0)
    task = Task(prompt="", pieces=partial(scores, pairs=pairs, how=how))
    model = server.model(body.model)
    result = (await results(server.admit(task, model), http))[0]
    log_result(http, result)
    if not isinstance(result, TaskResult):
        raise ApiError(400, f"score: the engine {result.engine} does not score texts; the engine transformers does")
    session = model.worker.session if model.worker else None
    block = how.block or (session.facts.block if session else 0)
    shown = [_shown(one, body.values) for one in result.found]
    return {"model": model.name, "engine": result.engine, "kind": body.kind, "block": block, "scores": shown}


def _shown(one: Score, values: bool) -> dict[str, Any]:
    told = asdict(one) | {"nats_per_token": one.nats_per_token}
    return told if values else {name: value for name, value in told.items() if name != "values"}
