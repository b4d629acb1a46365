# Streaming clients that go on for a while, each answer held against the same request alone; health probed throughout.
# Entry points: soak(url, clients, seconds, new_tokens), unmet(report); python -m api.soak URL [CLIENTS SECONDS TOKENS].
# Prints the figures, writes them to runs/soak.json and exits with 1 when a condition did not hold: every answer equal
# to the same request alone, none lost, memory flat, every /health reply `ready` within 100 ms.
"""Soak of a running server."""

from __future__ import annotations

import http.client
import json
import statistics
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from api.probe import FAULTS, watching

PROMPTS = [
    f"{who} {what}" for who in ("the fox", "a girl", "one boat", "old stone") for what in ("ran", "gave", "kept")
]
RULED = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 9}
"""What a quarter of the answers must be: they are decoded under this schema, and read as JSON."""
HEALTH_MS = 100.0
GROWTH_MB, GROWTH_SHARE, SAMPLES = 8.0, 0.02, 6
BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
REPORT = Path(__file__).resolve().parents[2] / "runs" / "soak.json"


@dataclass
class Tally:
    """What the clients saw."""

    expected: dict[str, str]
    ruled: bool = True
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    tokens: int = 0


def connect(url: str) -> http.client.HTTPConnection:
    """A connection that is kept between requests."""
    place = urlsplit(url)
    return http.client.HTTPConnection(place.hostname or "", place.port, timeout=120)


def post(connection: http.client.HTTPConnection, body: dict[str, Any]) -> http.client.HTTPResponse:
    """The reply to POST /generate; ConnectionError for any status but 200."""
    connection.request("POST", "/generate", json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    if reply.status != 200:
        raise ConnectionError(f"status {reply.status}: {reply.read()[:200]!r}")
    return reply


def ruled(prompt: str) -> bool:
    """Whether it is one of every four."""
    return PROMPTS.index(prompt) % 4 == 0


def body_of(prompt: str, new_tokens: int, rules: bool) -> dict[str, Any]:
    """The request of a prompt; with rules every fourth one is under a schema."""
    grammar = {"grammar": {"type": "json_schema", "text": RULED}} if rules and ruled(prompt) else {}
    return {"prompt": prompt, "max_new_tokens": new_tokens, "seed": 1, **grammar}


def parses(text: str) -> bool:
    """Whether it is JSON."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def stream_one(connection: http.client.HTTPConnection, prompt: str, new_tokens: int, tally: Tally) -> None:
    """One streamed generation."""
    begun, text, first, result, name = time.monotonic(), "", 0.0, None, b""
    reply = post(connection, body_of(prompt, new_tokens, tally.ruled) | {"stream": True})
    for line in reply:
        name = line[7:].strip() if line.startswith(b"event: ") else name
        if line.startswith(b"data: ") and name in (b"commit", b"done"):
            first = first or time.monotonic() - begun
            value = json.loads(line[6:])
            text, result = (text + value["text"], None) if name == b"commit" else (text, value)
    if result is None:
        raise ConnectionError(f"the stream ended with {name.decode()!r}")
    tally.seconds.append(time.monotonic() - begun)
    tally.first.append(first)
    tally.tokens += result["metrics"]["tokens"]
    if text != result["text"] or text != tally.expected[prompt] or (tally.ruled and ruled(prompt) and not parses(text)):
        tally.wrong.append(prompt)


def run_client(url: str, number: int, until: float, new_tokens: int, tally: Tally) -> None:
    """One client, one request after the other, and one at least."""
    connection, turn = connect(url), number
    while turn == number or time.monotonic() < until:
        try:
            stream_one(connection, PROMPTS[turn % len(PROMPTS)], new_tokens, tally)
        except FAULTS as error:
            tally.lost.append(f"{type(error).__name__}: {error}")
            connection.close()
        turn += 7
    connection.close()


def alone(url: str, new_tokens: int, rules: bool) -> dict[str, str]:
    """The text of every prompt, one request after the other."""
    connection = connect(url)
    bodies = {prompt: body_of(prompt, new_tokens, rules) for prompt in PROMPTS}
    found = {prompt: str(json.loads(post(connection, body).read())["text"]) for prompt, body in bodies.items()}
    connection.close()
    return found


def soak(url: str, clients: int, seconds: float, new_tokens: int, rules: bool = True) -> dict[str, Any]:
    """Figures of one soak; unmet() says which conditions they break. rules: a quarter under a schema, which asks for a
    tokenizer that spells JSON."""
    tally = Tally(alone(url, new_tokens, rules), rules)
    with watching(url) as watch:
        begun = time.monotonic()
        until = begun + seconds
        workers = [
            threading.Thread(target=run_client, args=(url, number, until, new_tokens, tally))
            for number in range(clients)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        took = time.monotonic() - begun
    return {
        "clients": clients, "seconds": round(took, 1), "answers": len(tally.seconds), "wrong": tally.wrong,
        "lost": tally.lost, "requests_per_second": round(len(tally.seconds) / took, 1),
        "tokens_per_second": round(tally.tokens / took, 1), "latency_ms": percentiles(tally.seconds),
        "first_block_ms": percentiles(tally.first), **_probed(watch.seen),
    }  # fmt: skip


def _probed(seen: dict[str, Any]) -> dict[str, Any]:
    times = [seconds for _, seconds in seen["health"]]
    slowest = sorted(seen["health"], key=lambda pair: -pair[1])[:5]
    return {
        "health_bad": seen["bad"], "health_replies": len(times), "health_ms": percentiles(times),
        "health_distribution": distribution(times),
        "health_slowest": [{"at_second": at, "ms": round(1000 * seconds, 1)} for at, seconds in slowest],
        "memory_mb": [round(value, 1) for value in seen["memory"]],
    }  # fmt: skip


def percentiles(values: list[float]) -> dict[str, float]:
    """p50, p90, p99, p99.9 and maximum in milliseconds of values in seconds."""
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=1000, method="inclusive")
    found = {"p50": cuts[499], "p90": cuts[899], "p99": cuts[989], "p99.9": cuts[998], "max": max(values)}
    return {name: round(1000 * value, 1) for name, value in found.items()}


def distribution(values: list[float]) -> dict[str, int]:
    """How many of the values, in seconds, are below each bound in milliseconds and not below the one before."""
    rows, before = {}, 0.0
    for bound in (*BOUNDS_MS, float("inf")):
        rows[f"< {bound:g} ms"] = sum(before <= 1000 * value < bound for value in values)
        before = bound
    return rows


def growth(memory: list[float]) -> float:
    """Median of the last third minus median of the second third, in the unit of the samples; the first third warms."""
    third = len(memory) // 3
    return statistics.median(memory[-third:]) - statistics.median(memory[third:-third])


def unmet(report: dict[str, Any]) -> list[str]:
    """The conditions that did not hold, in words; empty when all did."""
    found = [f"{name}: {len(report[name])}, first {report[name][0]}" for name in ("wrong", "lost") if report[name]]
    if not report["answers"]:
        found.append("answers: none")
    if report["health_bad"]:
        found.append(f"health: {len(report['health_bad'])} replies not ready, first {report['health_bad'][0]}")
    slowest = report["health_ms"].get("max", float("inf"))
    if slowest >= HEALTH_MS:
        found.append(f"health: slowest reply {slowest} ms, below {HEALTH_MS:g} is needed")
    memory = report["memory_mb"]
    if len(memory) < SAMPLES:
        found.append(f"memory: {len(memory)} samples, {SAMPLES} are needed to judge it; soak for longer")
    elif growth(memory) > max(GROWTH_MB, GROWTH_SHARE * memory[-1]):
        found.append(f"memory: grew by {growth(memory):.1f} MB between the second and the last third")
    return found


def main(arguments: list[str]) -> int:
    """Soak, print, write; 1 when a condition did not hold."""
    clients, seconds, tokens = [float(value) for value in arguments[1:]] + [32, 60, 32][len(arguments) - 1 :]
    report = soak(arguments[0], int(clients), seconds, int(tokens))
    report["unmet"] = unmet(report)
    REPORT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))
    print(f"{'NOT HELD: ' + '; '.join(report['unmet']) if report['unmet'] else 'all conditions held'} ({REPORT})")
    return bool(report["unmet"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
