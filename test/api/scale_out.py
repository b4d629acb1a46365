# Two server processes behind nginx under load, one of them drained and replaced: what is lost, and whether a session
# meets its beginning in the cache. Entry points: `python -m api.scale_out [CLIENTS SECONDS]`; needs nginx (or --nginx).
# deploy/nginx.conf is used as it is but for TLS, ports and names. Every answer is compared with the same request asked
# of one server alone; a reply that is no 200, breaks off or differs is lost. Exit code 1 where anything was lost.
"""Load test of two replicas."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from api.live import wait_ready

ROOT = Path(__file__).resolve().parents[2]
PORTS, FRONT = (18081, 18082), 18080
SYSTEM = "You are a friendly teller of small stories about Lily, her fox and the old boat on the river. "
TURNS = ("Write a story about Lily and a fox.", "What did the fox do then?", "And how did it end?")
NEW = 24


@dataclass
class Tally:
    """What the clients saw: answers by replica, cached and prompt tokens of later turns, what was lost."""

    expected: dict[str, list[str]] = field(default_factory=dict)
    answers: int = 0
    seconds: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    cached: int = 0
    prompt: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def server(port: int, folder: Path) -> subprocess.Popen[bytes]:
    """One replica over the bundled model."""
    command = [
        sys.executable, "-m", "hildanext", "serve", "--port", str(port), "--model", "tiny", "--quiet",
        "--set", "serve.drain_seconds=3", "--set", "serve.shutdown_seconds=60", "--set", "serve.jobs=false",
        "--set", "serve.queue=256", "--set", "decode.block=16", "--set", 'serve.hosts=["llm.example.org"]',
    ]  # fmt: skip
    log = (folder / f"server-{port}.log").open("ab")
    return subprocess.Popen(command, cwd=folder, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})


@contextlib.contextmanager
def nginx(binary: str, folder: Path, affinity: bool) -> Iterator[str]:
    """nginx over deploy/nginx.conf without TLS; without affinity requests are spread over the replicas in turn."""
    text = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    text = re.sub(r"listen 443 ssl;", f"listen 127.0.0.1:{FRONT};", re.sub(r"\s+ssl_\w+ [^;]+;", "", text))
    for own, port in zip(("8081", "8082"), PORTS, strict=True):
        text = text.replace(f"127.0.0.1:{own}", f"127.0.0.1:{port}")
    text = text if affinity else re.sub(r"hash [^;]+;", "", text)
    temporary = " ".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    head = f"daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.log warn; worker_processes 1;"
    (folder / "nginx.conf").write_text(f"{head}\nevents {{}}\nhttp {{\naccess_log off; {temporary}\n{text}\n}}\n")
    process = subprocess.Popen(
        [binary, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", str(folder / "nginx.log")]
    )
    try:
        yield f"http://127.0.0.1:{FRONT}"
    finally:
        process.terminate()
        process.wait()


def conversation(url: str, name: str, tally: Tally | None) -> list[str]:
    """The three answers of one session, each asked with all that was said before."""
    said: list[str] = []
    messages: list[dict[str, str]] = [{"role": "system", "content": SYSTEM + name}]
    headers = {"x-session-id": name, "host": "llm.example.org"}
    with httpx.Client(base_url=url, timeout=90, headers=headers) as client:
        for number, turn in enumerate(TURNS):
            messages.append({"role": "user", "content": turn})
            begun = time.monotonic()
            said.append(_answer(client, messages, tally if number else None))
            messages.append({"role": "assistant", "content": said[-1]})
            if tally is not None:
                with tally.lock:
                    tally.answers += 1
                    tally.seconds.append(time.monotonic() - begun)
    return said


def _answer(client: httpx.Client, messages: list[dict[str, str]], tally: Tally | None) -> str:
    body = {"model": "tiny", "messages": messages, "seed": 1, "max_tokens": NEW, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    text, usage, done = "", {}, False
    with client.stream("POST", "/v1/chat/completions", json=body) as reply:
        if reply.status_code != 200:
            raise ConnectionError(f"status {reply.status_code}: {reply.read()[:200]!r}")
        for line in reply.iter_lines():
            if not line.startswith("data: "):
                continue
            done = line == "data: [DONE]"
            chunk: dict[str, Any] = {} if done else json.loads(line[6:])
            if "error" in chunk:
                raise ConnectionError(str(chunk["error"]))
            usage = chunk.get("usage") or usage
            text += "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))
    if not done:
        raise ConnectionError("the stream broke off")
    if tally is not None:
        with tally.lock:
            tally.cached += usage["prompt_tokens_details"]["cached_tokens"]
            tally.prompt += usage["prompt_tokens"]
    return text


def client(url: str, number: int, ended: threading.Event, tally: Tally) -> None:
    """One client, conversation after conversation: known ones, which are compared, or new ones where none is known."""
    turn = 0
    while not ended.is_set():
        name = f"session {number}" if tally.expected else f"{id(tally)} {number} {turn}"
        try:
            if conversation(url, name, tally) != tally.expected.get(name) and tally.expected:
                tally.lost.append(f"{name}: another text")
        except (httpx.HTTPError, ConnectionError, KeyError) as error:
            tally.lost.append(f"{name}, turn {turn}: {type(error).__name__}: {error}")
        turn += 1


def load(url: str, clients: int, seconds: float, expected: dict[str, list[str]], during: Any = None) -> dict[str, Any]:
    """Figures of `clients` at work for `seconds`, and as long as during(), what happens meanwhile, takes."""
    tally, begun, ended = Tally(expected), time.monotonic(), threading.Event()
    threads = [threading.Thread(target=client, args=(url, n, ended, tally)) for n in range(clients)]
    for thread in threads:
        thread.start()
    happened = during() if during is not None else {}
    time.sleep(max(0.0, begun + seconds - time.monotonic()))
    ended.set()
    for thread in threads:
        thread.join()
    took, ordered = time.monotonic() - begun, sorted(tally.seconds)
    return {
        "clients": clients, "seconds": round(took, 1), "answers": tally.answers, "lost": tally.lost,
        "p50_ms": round(1000 * ordered[len(ordered) // 2]), "p99_ms": round(1000 * ordered[int(0.99 * len(ordered))]),
        "cached_share_of_later_turns": round(tally.cached / max(1, tally.prompt), 3), **happened,
    }  # fmt: skip


def replaced(processes: dict[int, subprocess.Popen[bytes]], folder: Path) -> dict[str, Any]:
    """SIGTERM to the first replica, its end awaited, another in its place, ready."""
    port, begun = PORTS[0], time.monotonic()
    processes[port].send_signal(signal.SIGTERM)
    status = httpx.get(f"http://127.0.0.1:{port}/health").json()["status"]
    code = processes[port].wait(90)
    drained = time.monotonic() - begun
    processes[port] = server(port, folder)
    wait_ready(f"http://127.0.0.1:{port}")
    return {"health_while_draining": status, "exit": code, "drained_seconds": round(drained, 1),
            "replaced_seconds": round(time.monotonic() - begun, 1)}  # fmt: skip


def main() -> int:
    """Both loads, with affinity and without; prints the figures and writes them to runs/scale_out.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", nargs="?", type=int, default=8)
    parser.add_argument("seconds", nargs="?", type=float, default=30.0)
    parser.add_argument("--nginx", default=shutil.which("nginx"), help="the binary; default: the one on PATH")
    args = parser.parse_args()
    if args.nginx is None:
        parser.error("no nginx on PATH; install it or name it with --nginx")
    folder = Path(tempfile.mkdtemp(prefix="scale-out-"))
    processes = {port: server(port, folder) for port in PORTS}
    found: dict[str, Any] = {}
    try:
        for port in PORTS:
            wait_ready(f"http://127.0.0.1:{port}")
        alone = f"http://127.0.0.1:{PORTS[1]}"
        expected = {name: conversation(alone, name, None) for name in (f"session {n}" for n in range(args.clients))}
        for affinity in (True, False):
            with nginx(args.nginx, folder, affinity) as url:
                wait_ready(url)
                name = "with affinity" if affinity else "without affinity"
                found[name] = load(url, args.clients, args.seconds / 2, {})
                if affinity:
                    found["one replaced"] = load(
                        url, args.clients, args.seconds, expected, lambda: replaced(processes, folder)
                    )
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    print(json.dumps(found, indent=2))
    (ROOT / "runs" / "scale_out.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return int(any(one["lost"] for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
