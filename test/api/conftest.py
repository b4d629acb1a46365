# A scripted server for the tests of the routes.
# Entry points: served, served_folder, session.
# One server per test file; its session answers from the request alone.
"""Fixtures of the server's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from api.live import config_in, live_server, wait_ready
from api.scripted import ScriptedSession

from hildanext.api import job_plan


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
    config = config_in(served_folder, queue=48, body_seconds=1.0, request_seconds=3.0)
    with live_server(config, session) as (url, _):
        wait_ready(url)
        with httpx.Client(base_url=url, timeout=30) as client:
            yield client
    job_plan.PROGRAM = before
