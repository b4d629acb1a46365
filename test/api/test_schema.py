# The OpenAPI document against the server: schemathesis finds server errors and undocumented answers.
# Entry points: pytest.
# Endless streams are left out by asking for the JSON form; everything else is generated.
"""Property tests of the API's own description."""

from __future__ import annotations

from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FAST = settings(
    max_examples=6, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck), derandomize=True,
)  # fmt: skip


def operations(served: httpx.Client) -> list[Any]:
    document = schemathesis.openapi.from_url(f"{served.base_url}/openapi.json")
    return [found.ok() for found in document.get_all_operations()]


def test_no_answer_is_a_server_error_or_undocumented(served: httpx.Client) -> None:
    found = operations(served)
    assert len(found) >= 14
    for operation in found:
        FAST(given(case=operation.as_strategy())(check))()


def check(case: Any) -> None:
    if isinstance(case.body, dict):
        case.body.pop("stream", None)
        for name in ("max_new_tokens", "max_tokens", "max_completion_tokens"):
            if isinstance(case.body.get(name), int):
                case.body[name] = min(case.body[name], 8)
    if isinstance(case.query, dict):
        case.query.pop("stream", None)
    case.call_and_validate(checks=CHECKS, timeout=300)
