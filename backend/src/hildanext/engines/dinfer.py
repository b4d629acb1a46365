# dInfer on this machine's GPUs: opened only where every one of its demands is met, and told why where not.
# Entry points: Dinfer (plugin), DinferSession.
# Facts from dInfer at fce4e32: import needs vllm, no Qwen3-dense class, T2T editing absent, greedy only, one prompt per
# data-parallel group, EOS ids deleted from what it returns (inside the prompt too), thresholds fixed at start.
"""Engine `dinfer`."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import count
from typing import Any

from pydantic import Field

from hildanext.config import Config
from hildanext.data.tokenizers import load_tokenizer
from hildanext.decoding.events import Event
from hildanext.decoding.modes import mode_values
from hildanext.decoding.prompt import Bounds
from hildanext.decoding.request import Request, Result
from hildanext.engines.protocol import Capability, EnginePlugin, Facts, Failed, Opening, refused
from hildanext.engines.relay import Relay, refuse_fixed
from hildanext.errors import HildaError, RunError
from hildanext.models.hardware import devices
from hildanext.models.load import model_folder, name_of
from hildanext.models.meta import HildaMeta
from hildanext.progress import Console

NEEDED: Mapping[str, tuple[str, ...]] = {"vllm": ("0.10.2",), "sglang": ("0.5.3", "0.5.3.post1")}
MODEL_TYPES: Mapping[str, str] = {"LLaDA2MoeModelLM": "llada2", "LLaDAMoeModelLM": "llada-moe", "LLaDAModelLM": "llada"}
LOWEST_CAPABILITY = (8, 0)
FAILURES = (ImportError, RuntimeError, ValueError, TypeError, AttributeError, OSError, AssertionError)


def missing_packages() -> list[str]:
    """What is not installed, or installed in a version dInfer was not tested with."""
    found = [] if find_spec("dinfer") else ["the package dinfer is not installed; see vendor/README.md"]
    for name, versions in NEEDED.items():
        try:
            have = version(name)
        except PackageNotFoundError:
            found.append(f"the package {name} is not installed, {versions[0]} is needed")
            continue
        if have not in versions:
            found.append(f"the package {name} is {have}, {' or '.join(versions)} is needed")
    return found


def missing_hardware() -> list[str]:
    """Why no GPU here will do."""
    levels = [tuple(map(int, device["capability"].split("."))) for device in devices() if device.get("capability")]
    if not levels:
        return ["no CUDA device, one of compute capability 8.0 or more is needed"]
    best = max(levels)
    return [] if best >= LOWEST_CAPABILITY else [f"compute capability {best[0]}.{best[1]}, 8.0 or more is needed"]


class Dinfer(EnginePlugin):
    """dInfer's serving class over model.path."""

    mode: str = Field("Q_MODE", description="the mode whose tau_mask it is started with")
    gpus: int | None = Field(None, ge=1, description="GPUs used, a count; null: all")
    seconds: float = Field(300.0, gt=0.0, description="time one generation may take, seconds")

    def open(self, config: Config, console: Console) -> Opening:
        """Check packages, GPUs, checkpoint and ids in turn, then start its processes."""
        try:
            reasons = [*missing_packages(), *missing_hardware(), *self._unfit(config)]
            if reasons:
                return refused(*reasons)
            session = self._start(config)
        except HildaError as error:
            return refused(str(error))
        except FAILURES as error:
            return refused(f"starting it failed ({type(error).__name__}: {error})")
        return Opening(session.capability, session)

    def _unfit(self, config: Config) -> list[str]:
        folder = model_folder(config.model.path)
        kind = HildaMeta.read(folder).kind
        if kind != "hf":
            return [f"{config.model.path} is of kind {kind}, it reads whole Hugging Face folders; export it first"]
        names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or ["none"]
        found = [] if names[0] in MODEL_TYPES else [f"no model class for {names[0]}, it has {', '.join(MODEL_TYPES)}"]
        if HildaMeta.read(folder).mask_id is None:
            found.append(f"{config.model.path}: hildanext.json gives no mask_id")
        return found

    def _start(self, config: Config) -> DinferSession:
        folder = model_folder(config.model.path)
        tokenizer = load_tokenizer(folder)
        meta = HildaMeta.read(folder)
        shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        values = mode_values(self.mode, config.decode, meta.decode)
        serving = import_module("dinfer.decoding.serving")
        window = int(shape.get("max_position_embeddings", 4096))
        sampling = serving.SamplingParams(
            threshold=values["tau_mask"], cache="prefix", temperature=0.0, early_stop=True, mask_id=meta.mask_id,
            eos_id=tokenizer.eos_token_id, use_bd=True, max_length=window, enable_torch_compile=False,
        )  # fmt: skip
        engine = serving.DiffusionLLMServing(
            str(folder), model_type=MODEL_TYPES[shape["architectures"][0]], sample_params=sampling, num_gpus=self.gpus,
            dp_size=1, backend="sglang", timeout=self.seconds,
        )  # fmt: skip
        facts = Facts(
            config.serve.name or name_of(folder), "cuda", "bfloat16", "dInfer's own", window, meta.block or 32
        )
        mask_id, tau_mask, start = int(meta.mask_id or 0), values["tau_mask"], meta.document_start
        return DinferSession(self, engine, tokenizer, facts, config, mask_id, tau_mask, start)


@dataclass
class DinferSession:
    """One request after the other; each step is a whole generation, because dInfer reports nothing before the end."""

    plugin: Dinfer
    engine: Any
    tokenizer: Any
    facts: Facts
    config: Config
    mask_id: int
    tau_mask: float
    start: list[int] | None
    name: str = "dinfer"
    waiting: deque[Relay] = field(default_factory=deque)
    numbers: Any = field(default_factory=count)

    @property
    def capability(self) -> Capability:
        """Block cache, no editing, whole generations; its cache is not exact."""
        notes = ("no T2T editing: tau_edit is not applied", "requests are decoded one after the other")
        return Capability(True, notes, True, 1, False, "end", False, ("cuda",))

    @property
    def pending(self) -> int:
        """Requests that wait."""
        return len(self.waiting)

    def submit(self, request: Request, drafts: bool = False) -> int:
        """Queue a request. DecodeError for what is fixed at start."""
        refuse_fixed(request, self.name, self.plugin.mode)
        decode, words = self.config.decode, len(self.tokenizer)
        new = decode.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens
        bounds = Bounds(self.facts.block, self.facts.window, new, self.mask_id, words, self.start, decode.thinking)
        preset = {"mode": self.plugin.mode, "source": "engine", "tau_mask": self.tau_mask, "tau_edit": None}
        self.waiting.append(Relay(next(self.numbers), request, self.tokenizer, bounds, "threshold", preset))
        return self.waiting[-1].number

    def step(self) -> Sequence[Event | Failed]:
        """Decode the next request to its end; where dInfer fails, that request fails and the rest wait on."""
        if not self.waiting:
            return []
        relay = self.waiting.popleft()
        try:
            return self._decode(relay)
        except RunError as error:
            return [Failed(relay.number, error)]

    def _decode(self, relay: Relay) -> list[Event]:
        import torch

        block = self.facts.block
        length = -(-(len(relay.prompt) + relay.bounds.new) // block) * block - len(relay.prompt)
        try:
            found = self.engine.generate(torch.tensor([relay.prompt]), gen_length=length, block_length=block)
        except FAILURES as error:
            raise RunError(f"dinfer: a generation failed ({type(error).__name__}: {error})") from error
        relay.forwards = int(getattr(self.engine, "num_forwards", 0))
        return relay.push(self._new_tokens(found[0].tolist(), relay), True)

    def _new_tokens(self, row: list[int], relay: Relay) -> list[int]:
        eos = self.tokenizer.eos_token_id
        for prompt in (list(relay.prompt), [token for token in relay.prompt if token != eos]):
            if row[: len(prompt)] == prompt:
                return row[len(prompt) :]
        raise RunError("dinfer: what it returned does not begin with the prompt")

    def cancel(self, number: int) -> Result | None:
        """Take a waiting request off the queue; one at work cannot be stopped."""
        for relay in list(self.waiting):
            if relay.number == number:
                self.waiting.remove(relay)
                return relay.result()
        return None

    def reset(self) -> None:
        """Forget what waits."""
        self.waiting.clear()

    def close(self) -> None:
        """Stop its processes."""
        self.reset()
        self.engine.stop_serving()
