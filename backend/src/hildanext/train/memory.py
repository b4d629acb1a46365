# Peak memory of this process, in bytes.
# Entry points: memory.
# On a GPU what the allocator held at most; elsewhere the peak resident set, 0 where the system does not tell.
"""Memory in use."""

from __future__ import annotations

import sys

import torch


def memory(device: torch.device) -> int:
    """Peak bytes so far on the device."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:
        return 0
    return int(getrusage(RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)
