# Errors on the wire: one JSON shape, the one OpenAI clients read, whatever went wrong.
# Entry points: error_reply, told, add_handlers, ApiError, served (answers for the OpenAPI document).
# Input is never echoed beyond its type and place: it may be huge, secret, or not representable in JSON.
"""Error replies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from hildanext.api.schemas import ErrorReply
from hildanext.decoding.wording import field_of, in_words_of
from hildanext.errors import HildaError
from hildanext.progress import show_traceback

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


def spoken_at(path: str) -> tuple[str, str]:
    """(interface, field of the prompt) of a route, for in_words_of."""
    if path.startswith("/v1/"):
        return "openai", "messages" if "/chat/" in path else "prompt"
    return "native", "prompt"


def told(error: HildaError | ApiError, path: str) -> dict[str, Any]:
    """The body of an error in the words of the route's interface."""
    status = error.status if isinstance(error, ApiError) else error.http_status
    interface, prompt = spoken_at(path)
    text = in_words_of(interface, str(error), prompt)
    param = error.param if isinstance(error, ApiError) else field_of(interface, text) if status < 500 else None
    if param in ("prompt", "max_new_tokens"):
        param = field_of(interface, in_words_of(interface, f"{param}: ", prompt)) or param
    return error_body(status, text, param, getattr(error, "code", None))


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    headers = {name.replace("_", "-"): value for name, value in error.headers.items()}
    return _json(told(error, request.url.path), error.status, headers)


async def _hilda_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HildaError)
    return _json(told(error, request.url.path), error.http_status)


def _json(body: dict[str, Any], status: int, headers: dict[str, str] | None = None) -> JSONResponse:
    detail = body["error"]
    detail["message"] = detail["message"].encode("utf-8", "replace").decode()
    return JSONResponse(body, status, headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    kind = request.headers.get("content-type", "")
    if request.method == "POST" and not _is_json(kind) and any(item["loc"] == ("body",) for item in error.errors()):
        said = f"sent as {kind[:80]!r}" if kind else "sent without a content type"
        return error_reply(422, f"body: {said}; send JSON with the header 'content-type: application/json'")
    found = [(_place(item), item) for item in _tellable(list(error.errors()))]
    lines = list(dict.fromkeys(_problem(place, item) for place, item in found))
    more = f"; and {len(lines) - PROBLEMS_SHOWN} more" if len(lines) > PROBLEMS_SHOWN else ""
    return error_reply(
        422, "; ".join(lines[:PROBLEMS_SHOWN]) + more, next((place for place, _ in found if place), None)
    )


def _is_json(kind: str) -> bool:
    main = kind.partition(";")[0].strip().lower()
    return main == "application/json" or main.startswith("application/") and main.endswith("+json")


def _tellable(found: list[Any]) -> list[Any]:
    """Of the alternatives a value might have been, the one it came nearest to: a text that is too short is not said to
    be no list as well."""
    kept: list[Any] = []
    unions: dict[tuple[Any, ...], dict[str, list[Any]]] = {}
    for item in found:
        at = next((i for i, part in enumerate(item["loc"]) if i and ALTERNATIVE.fullmatch(str(part))), None)
        if at is None:
            kept.append(item)
        else:
            unions.setdefault(item["loc"][:at], {}).setdefault(str(item["loc"][at]), []).append(item)
    return kept + [item for forms in unions.values() for item in min(forms.values(), key=_distance)]


def _distance(items: list[Any]) -> tuple[bool, int, int]:
    other = any(item["type"].endswith("_type") or item["type"] == "literal_error" for item in items)
    return other and len(_place(items[0]).split(".")) == 1, len(items), -max(_index(item["loc"]) for item in items)


def _index(loc: Sequence[Any]) -> int:
    return max((part for part in loc if isinstance(part, int)), default=-1)


def _place(item: Any) -> str:
    if item["type"] == "json_invalid":
        return ""
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
    headers = dict(error.headers or {})
    text = str(error.detail)
    if error.status_code == 404 and text == "Not Found":
        text = _no_such_route(request)
    if error.status_code == 405:
        taken = ", ".join(method.upper() for method in request.app.openapi()["paths"].get(request.url.path, ()))
        headers |= {"allow": taken} if taken else {}
        text = f"{request.method} {request.url.path[:80]}: this route takes {taken or 'another method'}"
    return error_reply(error.status_code, text, headers=headers)


def _no_such_route(request: Request) -> str:
    path = request.url.path[:200]
    known = set(request.app.openapi()["paths"])
    bare = re.sub(r"^(?:/(?:v1|api|openai))*|/+$", "", re.sub(r"/+", "/", path))
    tail = next((end for end in ("/chat/completions", "/completions", "/models") if bare.endswith(end)), bare)
    near = next((one for one in (f"/v1{tail}", tail) if one in known and one != "/"), None)
    if near and near.startswith("/v1"):
        base = str(request.base_url).rstrip("/")
        return f"no route {path}, but {near}; the base URL of OpenAI clients is {base}/v1"
    return f"no route {path}{f', but {near}' if near else ''}; /openapi.json lists them"


async def _server_error(request: Request, error: Exception) -> Response:
    show_traceback(error)
    return error_reply(500, f"the server failed ({type(error).__name__}); its log says where")
