# The models of this server over HTTP: what is loaded, and a changed folder loaded anew.
# Entry points: router.
# A reload is asked for, not guessed: whoever writes the folder knows when it is whole.
"""Routes of the models."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from pydantic import BaseModel

from hildanext.api.replies import served
from hildanext.api.state import server_of

router = APIRouter(prefix="/models", tags=["models"])


class Models(BaseModel):
    """GET /models: name, folder, state, bytes reckoned and requests of every model; room_bytes: what they may take
    together, null for no limit."""

    models: list[dict[str, Any]]
    room_bytes: int | None


class Reloaded(BaseModel):
    """POST /models/NAME/reload: whether the folder was loaded, and why or why not."""

    model: str
    reloaded: bool
    reason: str


@router.get("", response_model=Models, responses=served(401))
async def models(http: HttpRequest) -> dict[str, Any]:
    """Every model that is served, loaded or not."""
    fleet = server_of(http).fleet
    return {"models": fleet.cards(), "room_bytes": fleet.room}


@router.post("/{name:path}/reload", response_model=Reloaded, responses=served(401, 403, 404, 409, 422, 503))
async def reload(name: str, http: HttpRequest, force: bool = Query(False, description="also unchanged")) -> Any:
    """Load the folder of a model anew where it has changed; the reply comes when it is there. Answers that run end on
    the old weights, those that follow use the new ones, and none is dropped."""
    server = server_of(http)
    return await asyncio.to_thread(server.fleet.reload, server.model(name), force)
