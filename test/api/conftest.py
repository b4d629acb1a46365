# A scripted server for the tests of the routes.
# Entry points: served, served_folder, session, endless.
# One server per test file; its session answers from the request alone. Its limits of time are the defaults: what a
# loaded machine does late is no refusal; a test of a limit has a server of its own.
"""Fixtures of the server's tests."""

from __future__ import annotations

import functools
import inspect
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from api.live import config_in, live_server, wait_ready
from api.scripted import ScriptedSession
from waiting import PATIENCE

from hildanext.api import job_plan


@pytest.fixture(scope="module", autouse=True)
def patient() -> Iterator[None]:
    """httpx, where a test names no time of its own, gives up after five seconds; and for every call it reads the
    certificates anew (33 ms), which no test needs."""
    limits = inspect.signature(httpx.Client).parameters["timeout"].default
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        for name in ("connect", "read", "write", "pool"):
            patch.setattr(limits, name, PATIENCE)
        yield


@pytest.fixture(scope="module")
def session() -> ScriptedSession:
    """The session behind `served`."""
    return ScriptedSession(seconds=0.002)


@pytest.fixture(scope="module")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder whose data, models and runs `served` uses."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def served(served_folder: Path, session: ScriptedSession) -> Iterator[httpx.Client]:
    """A client of a live scripted server."""
    # a plan is made by a stand-in: the command itself would load torch for every request
    before, job_plan.PROGRAM = job_plan.PROGRAM, (sys.executable, str(Path(__file__).with_name("stub_planner.py")))
    config = config_in(served_folder, queue=48)
    with live_server(config, session) as (url, _):
        wait_ready(url)
        with httpx.Client(base_url=url) as client:
            yield client
    job_plan.PROGRAM = before


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[tuple[str, ScriptedSession]]:
    """A server that takes minutes over an answer of 4,000 tokens, and its session."""
    session = ScriptedSession(seconds=0.05)
    with live_server(config_in(tmp_path), session) as (url, _):
        wait_ready(url)
        yield url, session
