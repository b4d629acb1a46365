# A server that follows sglang's documented /server_info and /generate, answering with our own engine.
# Entry points: FakeSGLang (context manager), its faults are constructor arguments; `spoil` (last prompt id -> one of
# SPOILT) breaks the reply to single requests.
# Tokens arrive as cumulative output_ids, a block at a time, as server-sent events ended by [DONE].
"""A fake of sglang's HTTP server."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hildanext.config import Config
from hildanext.decoding.events import Commit, Done
from hildanext.decoding.request import Request
from hildanext.engines.choose import choose
from hildanext.progress import Console

THRESHOLD = 0.7
SPOILT = {
    "garbage": b"data: {half a\n\n", "list": b"data: [1]\n\n", "error": b'data: {"error": {"message": "OOM"}}\n\n',
    "ids": b'data: {"output_ids": ["a"], "meta_info": {}}\n\n', "meta": b'data: {"output_ids": [5]}\n\n',
}  # fmt: skip


class FakeSGLang:
    """Serves for the length of a with block."""

    def __init__(
        self, config: Config, algorithm: str = "LowConfidence", block: int = 8, wrong: bool = False,
        status: int = 200, garbage: bool = False, plain: bool = False,
    ) -> None:  # fmt: skip
        self.info: dict[str, Any] = {"model_path": "toy", "max_running_requests": 4}
        if not plain:
            self.info |= {"dllm_algorithm": algorithm, "dllm_block_size": block, "dllm_fdfo": True}
        self.wrong, self.status, self.garbage = wrong, status, garbage
        self.session, _ = choose(config, Console(quiet=True))
        self.lock = threading.Lock()
        self.spoil: dict[int, str] = {}

    def __enter__(self) -> FakeSGLang:
        handler = type("Handler", (_Handler,), {"fake": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Every chunk of one generation."""
        sampling = body["sampling_params"]
        request = Request.of(
            prompt_ids=tuple(body["input_ids"]), max_new_tokens=sampling["max_new_tokens"], tau_mask=THRESHOLD,
            tau_edit=None, ignore_eos=bool(sampling.get("ignore_eos")),
        )  # fmt: skip
        with self.lock:
            number = self.session.submit(request)
            events = []
            while self.session.pending:
                events += [event for event in self.session.step() if event.request == number]
        ids: list[int] = []
        chunks = []
        for event in events:
            if isinstance(event, Commit):
                ids += event.token_ids
                chunks.append({"text": "", "output_ids": self._spoilt(ids), "meta_info": {"finish_reason": None}})
            elif isinstance(event, Done):
                reason = {"type": "length" if event.result.finish_reason == "length" else "stop"}
                meta = {"finish_reason": reason, "prompt_tokens": len(body["input_ids"])}
                chunks.append({"text": "", "output_ids": self._spoilt(list(event.result.token_ids)), "meta_info": meta})
        return chunks

    def _spoilt(self, ids: list[int]) -> list[int]:
        return [*ids[:1], *[5] * (len(ids) - 1)] if self.wrong else list(ids)


class _Handler(BaseHTTPRequestHandler):
    fake: FakeSGLang
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        self._json(self.fake.info if self.path == "/server_info" else {}, self.fake.status)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        chunks = self.fake.answer(body)
        fault = self.fake.spoil.get(body["input_ids"][-1], "")
        if fault == "status":
            self._json({}, 500)
        elif not body.get("stream"):
            self._json(chunks[-1])
        elif fault != "hang up":
            self._stream(chunks, fault)
        self.close_connection = True

    def _stream(self, chunks: list[dict[str, Any]], fault: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for chunk in chunks[:1] if fault else chunks:
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(SPOILT.get(fault, b"") if fault else b"data: [DONE]\n\n")

    def _json(self, value: Any, status: int = 200) -> None:
        data = b"<html>" if self.fake.garbage else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
