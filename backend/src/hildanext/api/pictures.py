# Pictures of decoding over HTTP: the events a client has seen become a player, a GIF or an SVG.
# Entry points: router. The events are those of docs/events.md, so those of another engine will do.
# One is drawn at a time: a GIF takes memory and a core.
"""Picture route."""

from __future__ import annotations

import threading
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import Field

from hildanext.api.replies import served
from hildanext.api.schemas import StrictBody
from hildanext.decoding.wire import broken
from hildanext.errors import DataError
from hildanext.report.recording import Recording

router = APIRouter()
DRAWING = threading.Lock()
MEDIA = {"html": "text/html; charset=utf-8", "gif": "image/gif", "svg": "image/svg+xml"}
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file.",
        "content": {name.partition(";")[0]: {"schema": {"type": "string"}} for name in MEDIA.values()},
    }
}


class PictureBody(StrictBody):
    """POST /pictures: how a text was decoded, to be drawn."""

    format: Literal["html", "gif", "svg"] = Field(description="html: a player with a scrubber; gif, svg: animated")
    events: list[dict[str, Any]] = Field(max_length=20_000, description="the events, in the format of docs/events.md")
    title: str = Field("hildanext", max_length=200, description="what stands above the picture")


@router.post(
    "/pictures", response_class=Response, responses={**served(400, 401, 403, 408, 413, 422, 500), **PICTURE}
)  # fmt: skip
def picture(body: PictureBody) -> Response:
    """Draw a generation from its events. The file is an attachment: it is not meant to run on the server's address."""
    if wrong := broken(body.events):
        raise DataError(f"events: {wrong[0]}{f' and {len(wrong) - 1} more' if wrong[1:] else ''}; see docs/events.md")
    with DRAWING:
        content = Recording(tuple(body.events), body.title).as_file(f".{body.format}")
    name = f'attachment; filename="decode.{body.format}"'
    return Response(content, media_type=MEDIA[body.format], headers={"content-disposition": name})
