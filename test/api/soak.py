# Streaming clients that go on for a while, each answer held against the same request alone; health probed throughout.
# Entry points: soak(url, clients, seconds, new_tokens); python -m api.soak URL [CLIENTS SECONDS TOKENS].
# Prints requests/s, latency and health percentiles, and resident memory over time.
"""Soak of a running server."""

from __future__ import annotations

import json
import re
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

PROMPTS = [
    f"{who} {what}" for who in ("the fox", "a girl", "one boat", "old stone") for what in ("ran", "gave", "kept")
]


@dataclass
class Tally:
    """What the clients saw."""

    expected: dict[str, str]
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: int = 0
    tokens: int = 0


def stream_one(client: httpx.Client, prompt: str, new_tokens: int, tally: Tally) -> None:
    """One streamed generation."""
    begun, text, first, result = time.monotonic(), "", 0.0, None
    body = {"prompt": prompt, "max_new_tokens": new_tokens, "seed": 1, "stream": True}
    with client.stream("POST", "/generate", json=body) as reply:
        name = ""
        for line in reply.iter_lines():
            name = line[7:] if line.startswith("event: ") else name
            if line.startswith("data: ") and name in ("commit", "done"):
                first = first or time.monotonic() - begun
                value = json.loads(line[6:])
                text, result = (text + value["text"], None) if name == "commit" else (text, value)
    tally.seconds.append(time.monotonic() - begun)
    tally.first.append(first)
    if result is None:
        tally.lost += 1
    elif text != result["text"] or text != tally.expected[prompt]:
        tally.wrong.append(prompt)
    else:
        tally.tokens += result["metrics"]["tokens"]


def run_client(url: str, number: int, until: float, new_tokens: int, tally: Tally) -> None:
    """One client, one request after the other."""
    with httpx.Client(base_url=url, timeout=120) as client:
        turn = number
        while time.monotonic() < until:
            try:
                stream_one(client, PROMPTS[turn % len(PROMPTS)], new_tokens, tally)
            except httpx.HTTPError:
                tally.lost += 1
            turn += 7


def probe(url: str, stop: threading.Event, tally: Tally) -> None:
    """Health ten times a second, memory once a second."""
    with httpx.Client(base_url=url, timeout=30) as client:
        turn = 0
        while not stop.wait(0.1):
            begun = time.monotonic()
            client.get("/health").raise_for_status()
            tally.health.append(time.monotonic() - begun)
            if turn % 10 == 0:
                found = re.search(r"^hildanext_memory_bytes (\S+)", client.get("/metrics").text, re.M)
                tally.memory.append(float(found.group(1)) / 2**20 if found else 0.0)
            turn += 1


def soak(url: str, clients: int, seconds: float, new_tokens: int) -> dict[str, Any]:
    """Figures of one soak; `wrong` and `lost` are what must be empty."""
    with httpx.Client(base_url=url, timeout=120) as client:
        body = {"max_new_tokens": new_tokens, "seed": 1}
        alone = {p: client.post("/generate", json={"prompt": p, **body}).json()["text"] for p in PROMPTS}
    tally, stop = Tally(alone), threading.Event()
    watcher = threading.Thread(target=probe, args=(url, stop, tally))
    watcher.start()
    begun = time.monotonic()
    workers = [
        threading.Thread(target=run_client, args=(url, n, begun + seconds, new_tokens, tally)) for n in range(clients)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    took = time.monotonic() - begun
    stop.set()
    watcher.join()
    return {
        "clients": clients, "seconds": round(took, 1), "answers": len(tally.seconds), "wrong": tally.wrong,
        "lost": tally.lost, "requests_per_second": round(len(tally.seconds) / took, 1),
        "tokens_per_second": round(tally.tokens / took, 1), "latency_ms": percentiles(tally.seconds),
        "first_block_ms": percentiles(tally.first), "health_ms": percentiles(tally.health),
        "memory_mb": [round(value) for value in tally.memory],
    }  # fmt: skip


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p90, p99 and maximum in milliseconds."""
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    found = {"p50": cuts[49], "p90": cuts[89], "p99": cuts[98], "max": max(values)}
    return {name: round(1000 * value, 1) for name, value in found.items()}


if __name__ == "__main__":
    arguments = [float(value) for value in sys.argv[2:]] + [32, 60, 32][len(sys.argv) - 2 :]
    print(json.dumps(soak(sys.argv[1], int(arguments[0]), arguments[1], int(arguments[2])), indent=1))
