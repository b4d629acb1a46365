# An sglang server that runs elsewhere, spoken to over HTTP: the path beyond one machine.
# Entry points: Sglang (plugin), RemoteSession.
# Its thresholds belong to the server, so requests may not set them; a parity probe at start compares tokens with ours.
"""Engine `sglang`."""

from __future__ import annotations

import http.client
import json
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field

from hildanext.config import Config
from hildanext.data.chat import prompt_ids
from hildanext.decoding.events import Event
from hildanext.decoding.prompt import Bounds
from hildanext.decoding.request import Request, Result
from hildanext.engines.protocol import Capability, EnginePlugin, Facts, Failed, Opening, refused
from hildanext.engines.relay import Relay, refuse_fixed
from hildanext.engines.transformers import NativeSession
from hildanext.errors import EngineError, HildaError, RunError
from hildanext.models.load import load_model
from hildanext.progress import Console

STEP_SECONDS = 0.05
PROBES = ("The", "Once upon a time", "Question: what is 2 + 3?")
FAULTS = (OSError, http.client.HTTPException, ValueError)


@dataclass(frozen=True)
class Client:
    """The HTTP side. EngineError for whatever the server does wrong."""

    url: str
    seconds: float

    def _open(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=self.seconds)

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One JSON reply."""
        try:
            connection = self._open()
            connection.request(method, path, json.dumps(body) if body else None, {"content-type": "application/json"})
            reply = connection.getresponse()
            data = reply.read()
            connection.close()
        except FAULTS as error:
            raise EngineError(
                f"{self.url}{path}: no answer ({error}); start the server or correct the address"
            ) from error
        if reply.status != 200:
            raise EngineError(f"{self.url}{path}: status {reply.status}, expected 200; see that server's log")
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise EngineError(f"{self.url}{path}: the reply is no JSON object; is this an sglang server?")
        return value

    def stream(self, body: dict[str, Any], connection: http.client.HTTPConnection) -> Iterator[dict[str, Any]]:
        """Chunks of /generate, each with every output id so far. EngineError for a reply that is refused, malformed or
        cut off before its end."""
        connection.request("POST", "/generate", json.dumps(body), {"content-type": "application/json"})
        reply = connection.getresponse()
        if reply.status != 200:
            raise EngineError(f"{self.url}/generate: status {reply.status}, expected 200; see that server's log")
        for line in reply:
            text = line.decode("utf-8", "replace").strip()
            if text == "data: [DONE]":
                return
            if text.startswith("data:"):
                yield self._chunk(text[5:])
        raise EngineError(f"{self.url}/generate: the stream ended before its end")

    def _chunk(self, text: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict) or "error" in value:
            raise EngineError(f"{self.url}/generate: a chunk is an error or no JSON object ({text.strip()[:200]!r})")
        ids, meta = value.get("output_ids"), value.get("meta_info")
        if not (isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids) and isinstance(meta, dict)):
            raise EngineError(f"{self.url}/generate: a chunk has no output_ids or meta_info ({text.strip()[:200]!r})")
        return value


class Sglang(EnginePlugin):
    """A running `sglang.launch_server --dllm-algorithm ...` that serves the same weights as model.path."""

    url: str = Field("http://127.0.0.1:30000", description="address of the server")
    algorithm: str = Field("JointThreshold", description="its --dllm-algorithm: LowConfidence | JointThreshold")
    threshold: float = Field(0.7, ge=0.0, le=1.0, description="its threshold, a probability")
    edit_threshold: float | None = Field(None, description="its edit_threshold (JointThreshold), a probability")
    max_post_edit_steps: int = Field(16, ge=0, description="its max_post_edit_steps (JointThreshold), a count")
    mode: str = Field("Q_MODE", description="the mode these thresholds stand for")
    seconds: float = Field(300.0, gt=0.0, description="time one reply may take, seconds")
    probe: bool = Field(True, description="compare tokens with our own engine at start; off only for weights too large")

    def open(self, config: Config, console: Console) -> Opening:
        """Ask the server what it is, then compare its tokens with ours."""
        client = Client(self.url.rstrip("/"), self.seconds)
        try:
            info = client.call("GET", "/server_info")
            native = NativeSession("transformers", load_model(config.model, console), config)
            reasons = self._mismatches(info, native) or self._differences(client, native)
        except HildaError as error:
            return refused(str(error))
        if reasons:
            return refused(*reasons)
        most, loaded = int(info.get("max_running_requests") or 1), native.loaded
        session = RemoteSession(self, client, loaded.tokenizer, native.facts, config, most, loaded.meta.document_start)
        return Opening(session.capability, session)

    def _mismatches(self, info: dict[str, Any], native: NativeSession) -> list[str]:
        if "dllm_algorithm" not in info:
            return [f"{self.url}: not a block-diffusion server (no dllm_algorithm); start it with --dllm-algorithm"]
        found = []
        if info["dllm_algorithm"] != self.algorithm:
            found.append(f"{self.url}: dllm_algorithm is {info['dllm_algorithm']!r}, expected {self.algorithm!r}")
        block = info.get("dllm_block_size")
        if block is not None and block != native.facts.block:
            found.append(f"{self.url}: block size is {block}, the model's is {native.facts.block}")
        return found

    def _differences(self, client: Client, native: NativeSession) -> list[str]:
        if not self.probe:
            return []
        new = 2 * native.facts.block
        for text in PROBES:
            request = Request.of(
                prompt=text, max_new_tokens=new, tau_mask=self.threshold, tau_edit=self.edit_threshold, ignore_eos=True,
                overrides={"max_post_steps": self.max_post_edit_steps},
            )  # fmt: skip
            ours = native.engine.generate(request).token_ids
            ids = prompt_ids(native.loaded.tokenizer, text, None, native.loaded.meta.document_start)
            reply = client.call("POST", "/generate", body_of(ids, new, stream=False, ignore_eos=True))
            theirs = tuple(reply.get("output_ids") or ())
            if ours != theirs:
                return [
                    f"{self.url}: tokens differ from ours for {text!r} (position {_first_difference(ours, theirs)})"
                ]
        return []


def body_of(ids: list[int], new: int, stream: bool, ignore_eos: bool) -> dict[str, Any]:
    """The body of /generate."""
    sampling = {"max_new_tokens": new, "temperature": 0.0, "ignore_eos": ignore_eos}
    return {"input_ids": ids, "sampling_params": sampling, "stream": stream}


def _first_difference(ours: tuple[int, ...], theirs: tuple[int, ...]) -> int:
    pairs = zip(ours, theirs, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))


@dataclass
class RemoteSession:
    """Requests on their way to the server, a thread each; step() hands over what has arrived."""

    plugin: Sglang
    client: Client
    tokenizer: Any
    facts: Facts
    config: Config
    batch: int
    start: Sequence[int] | None
    name: str = "sglang"
    relays: dict[int, Relay] = field(default_factory=dict)
    connections: dict[int, http.client.HTTPConnection] = field(default_factory=dict)
    arrived: queue.SimpleQueue[tuple[int, Any]] = field(default_factory=queue.SimpleQueue)
    numbers: Iterator[int] = field(default_factory=count)

    @property
    def capability(self) -> Capability:
        """What the server does; exact as far as the probe can tell."""
        notes = () if self.plugin.probe else ("token parity was not checked (probe is off)",)
        edits = self.plugin.edit_threshold is not None
        return Capability(True, notes, True, self.batch, edits, "block", self.plugin.probe, (self.client.url,))

    @property
    def pending(self) -> int:
        """Requests on their way."""
        return len(self.relays)

    def submit(self, request: Request, drafts: bool = False) -> int:
        """Send a request. DecodeError for what the server decides."""
        refuse_fixed(request, self.name, self.plugin.mode)
        decode, words = self.config.decode, len(self.tokenizer)
        new = decode.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
        bounds = Bounds(self.facts.block, self.facts.window, new, -1, words, self.start, decode.thinking)
        preset = {"mode": self.plugin.mode, "source": "server", "tau_mask": self.plugin.threshold,
                  "tau_edit": self.plugin.edit_threshold}  # fmt: skip
        number = next(self.numbers)
        relay = Relay(number, request, self.tokenizer, bounds, self.plugin.algorithm, preset)
        self.relays[number], self.connections[number] = relay, self.client._open()
        body = body_of(list(relay.prompt), new, True, request.ignore_eos)
        threading.Thread(target=self._fetch, args=(number, body, self.connections[number]), daemon=True).start()
        return number

    def _fetch(self, number: int, body: dict[str, Any], connection: http.client.HTTPConnection) -> None:
        try:
            for chunk in self.client.stream(body, connection):
                self.arrived.put((number, chunk))
            self.arrived.put((number, None))
        except (*FAULTS, HildaError) as error:
            self.arrived.put((number, error))
        finally:
            connection.close()

    def step(self) -> Sequence[Event | Failed]:
        """What has arrived, after waiting a moment; a reply that fails ends its own request only."""
        if not self.pending:
            return []
        events: list[Event | Failed] = []
        try:
            item = self.arrived.get(timeout=STEP_SECONDS)
            while True:
                events += self._take(*item)
                item = self.arrived.get_nowait()
        except queue.Empty:
            return events

    def _take(self, number: int, item: Any) -> Sequence[Event | Failed]:
        relay = self.relays.get(number)
        if relay is None:
            return []
        if isinstance(item, Exception):
            self._drop(number)
            return [Failed(number, RunError(f"sglang: {item}; send the request again"))]
        if item is None:
            events = [] if relay.over else relay.push((), True)
        else:
            events = relay.push(item["output_ids"], bool(item["meta_info"].get("finish_reason")))
        if relay.over:
            self._drop(number)
        return events

    def _drop(self, number: int) -> None:
        self.relays.pop(number, None)
        connection = self.connections.pop(number, None)
        if connection is not None and connection.sock is not None:
            connection.sock.close()

    def cancel(self, number: int) -> Result | None:
        """Hang up, which makes the server stop."""
        relay = self.relays.get(number)
        self._drop(number)
        return None if relay is None else relay.result()

    def reset(self) -> None:
        """Hang up on everything."""
        for number in list(self.relays):
            self._drop(number)

    def close(self) -> None:
        """Hang up on everything."""
        self.reset()
