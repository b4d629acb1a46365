# Waiting for what another thread, process or page does, on a machine of any load; ports that no other test takes.
# Entry points: PATIENCE, until, free_ports.
# A limit here is a net under what never happens: no test may rest on how long a thing takes, only on what it waits for.
"""Waiting, and free ports."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 600.0
"""Seconds after which something that has not happened never will."""
FIRST, LAST, WORKERS = 20_000, 32_000, 4
"""Ports that the kernel gives nobody by itself, so that no other test takes the second of them meanwhile."""


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """The first true value of `condition`, asked again and again; fails where there is none for `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} seconds"
        time.sleep(0.02)
    return found


def free_ports(count: int) -> int:
    """The first of `count` consecutive ports that are free, out of the share of this pytest-xdist worker."""
    share = (LAST - FIRST) // WORKERS
    low = FIRST + share * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % WORKERS)
    begin = os.getpid() * count % (share - count)
    for first in (*range(low + begin, low + share - count, count), *range(low, low + begin, count)):
        try:
            with contextlib.ExitStack() as stack:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports")
