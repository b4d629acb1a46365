# Errors on the wire: one JSON shape, the one OpenAI clients read, whatever went wrong.
# Entry points: error_reply, add_handlers, ApiError, served (answers for the OpenAPI document).
# Input is never echoed beyond its type and place: it may be huge, secret, or not representable in JSON.
"""Error replies."""

from __future__ import annotations

import re
import traceback
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from hildanext.api.schemas import ErrorReply
from hildanext.errors import HildaError

TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    408: "timeout_error", 409: "conflict_error", 413: "request_too_large", 422: "invalid_request_error",
    429: "rate_limit_error", 503: "unavailable_error", 504: "timeout_error",
    507: "storage_error",
}  # fmt: skip
TEXTS = {
    400: "The request cannot be served as it is.", 401: "API key missing or wrong.", 403: "Not allowed.",
    404: "Nothing of that name.", 405: "Another method is needed.", 408: "The body took too long to arrive.",
    409: "The state does not allow it.", 413: "Longer than a limit.", 422: "A field is wrong or unknown.",
    429: "Too many requests; see Retry-After.", 500: "The server failed; the log says where.",
    503: "The engine is not ready.", 504: "The time limit ran out.",
    507: "The disk does not take it.",
}  # fmt: skip
PROBLEMS_SHOWN = 8
FIELD = re.compile(r"([a-z_]+): ")
ALTERNATIVE = re.compile(
    r"str|int|float|bool|none|constrained-\w+|(?:list|literal|nullable|function-\w+)\[.*\]|[A-Z]\w*"
)


class ApiError(Exception):
    """An error with its status, for what is no HildaError; `param` names the field."""

    def __init__(self, status: int, message: str, param: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.param, self.headers = status, param, headers


def served(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses=` of a route that may answer with these statuses."""
    return {status: {"model": ErrorReply, "description": TEXTS[status]} for status in statuses}


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """{"error": {...}}."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_reply(
    status: int, message: str, param: str | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    """The response of one error."""
    text = message.encode("utf-8", "replace").decode()
    return JSONResponse(error_body(status, text, param), status, headers)


def add_handlers(app: FastAPI) -> None:
    """Turn every exception into an error reply."""
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HildaError, _hilda_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _server_error)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = {name.replace("_", "-"): value for name, value in error.headers.items()}
    return error_reply(error.status, str(error), error.param, headers)


async def _hilda_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HildaError)
    field = FIELD.match(str(error)) if error.http_status == 400 else None
    return error_reply(error.http_status, str(error), field[1] if field else None)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    places = [_place(item) for item in found]
    lines = list(dict.fromkeys(_problem(place, item) for place, item in zip(places, found, strict=True)))
    more = f"; and {len(lines) - PROBLEMS_SHOWN} more" if len(lines) > PROBLEMS_SHOWN else ""
    return error_reply(422, "; ".join(lines[:PROBLEMS_SHOWN]) + more, places[0] if places else None)


def _place(item: Any) -> str:
    key = item["loc"][-1:] if item["type"] == "extra_forbidden" else ()
    outer = item["loc"][: len(item["loc"]) - len(key)]
    names = (*(part for part in outer if part != "body" and not ALTERNATIVE.fullmatch(str(part))), *key)
    return ".".join(str(name)[:80] for name in names)


def _problem(place: str, item: Any) -> str:
    if item["type"] == "extra_forbidden":
        return f"{place}: unknown key"
    if item["type"] == "json_invalid":
        return f"body: not valid JSON ({item.get('ctx', {}).get('error', '')})"
    message = str(item["msg"]).removeprefix("Value error, ")
    value = item.get("input")
    shown = f" (found {value!r})" if isinstance(value, bool | int | float) and len(repr(value)) < 40 else ""
    return f"{place or 'body'}: {message[0].lower()}{message[1:]}{shown}"


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_reply(error.status_code, str(error.detail), headers=dict(error.headers or {}))


async def _server_error(request: Request, error: Exception) -> Response:
    traceback.print_exception(error)
    return error_reply(500, f"the server failed ({type(error).__name__}); its log says where")
