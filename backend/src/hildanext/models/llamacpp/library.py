# llama.cpp by llama-cpp-python's low-level calls: a file's weights, and a context that holds cells of many sequences.
# Entry points: Weights (Weights.open), Context, library, HOW.
# Attention is not causal: a token sees every cell of one of its sequences, and a cell may belong to several. So what a
# block sees is said by sequences alone, and a forward over several blocks of several requests is one batch.
"""llama.cpp's weights and contexts."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hildanext.errors import ModelError, RunError, first_line

HOW = "pip install llama-cpp-python (it is built from source)"
NEEDED = ("llama_memory_seq_rm", "llama_memory_seq_cp", "llama_state_seq_get_data", "LLAMA_ATTENTION_TYPE_NON_CAUSAL")
SEQUENCES, LEAST = 256, 256
CLOSE = 0.02
KEYS = {"float32": "GGML_TYPE_F32", "float16": "GGML_TYPE_F16"}


@cache
def library() -> Any:
    """The package llama_cpp, silent. ModelError, with the line that installs it, where it is missing or too old."""
    try:
        found = import_module("llama_cpp")
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(f"llama-cpp-python cannot be imported ({first_line(error)}); {HOW}") from error
    fields = {name for name, _ in found.llama_context_params._fields_}
    absent = [name for name in NEEDED if not hasattr(found, name)] + sorted({"kv_unified", "flash_attn_type"} - fields)
    if absent:
        raise ModelError(f"llama-cpp-python {found.__version__} has no {absent[0]}; install 0.3.16 or newer: {HOW}")
    found.llama_log_set(_SILENT.setdefault("callback", found.llama_log_callback(_unheard)), None)
    found.llama_backend_init()
    return found


_SILENT: dict[str, Any] = {}


def _unheard(level: int, text: bytes, data: Any) -> None:
    return None


@dataclass(frozen=True)
class Weights:
    """The weights of a GGUF file. handle: llama.cpp's; vocabulary: rows of the output matrix; layers, kv_heads and
    head_dim: of the keys; window: longest sequence, tokens."""

    handle: Any
    vocabulary: int
    layers: int
    kv_heads: int
    head_dim: int
    window: int

    @classmethod
    def open(cls, file: Path) -> Weights:
        """Read a file, as far as the operating system lets it lie where it is. ModelError where llama.cpp is missing or
        cannot read it."""
        cpp = library()
        handle = cpp.llama_model_load_from_file(str(file).encode(), cpp.llama_model_default_params())
        if not handle:
            raise ModelError(f"{file}: llama.cpp cannot read it; export it again, or install a newer llama-cpp-python")
        width = cls.told(handle, f"{cls.told(handle, 'general.architecture')}.attention.key_length")
        heads = int(cpp.llama_model_n_head(handle))
        made = cls(
            handle, int(cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(handle))),
            int(cpp.llama_model_n_layer(handle)), int(cpp.llama_model_n_head_kv(handle)),
            int(width or int(cpp.llama_model_n_embd(handle)) // heads), int(cpp.llama_model_n_ctx_train(handle)),
        )  # fmt: skip
        weakref.finalize(made, cpp.llama_model_free, handle)
        return made

    @staticmethod
    def told(handle: Any, key: str) -> str | None:
        """A value of the file's metadata as text, None where it has none of that name; arrays are not told."""
        cpp, size = library(), 1 << 16
        while True:
            held = ctypes.create_string_buffer(size)
            length = int(cpp.llama_model_meta_val_str(handle, key.encode(), held, size))
            if length < size:
                return held.value.decode("utf-8", "replace") if length >= 0 else None
            size = length + 1

    @cached_property
    def order(self) -> int:
        """Which of its sequences a token sees: 1 the first in the order given, -1 the last, 0 neither for certain.
        llama.cpp promises none and its releases differ, so it is found by forwards over three tokens."""
        tokens = [(7 + 13 * index) % self.vocabulary for index in range(3)]
        steps = Context(self, 1, LEAST, 1, "float32")
        wanted = torch.cat([steps.run([Token(one, place, (0,), True)]) for place, one in enumerate(tokens)])
        found = {}
        for order in (1, -1):
            members = [tuple(range(first, 3))[::order] for first in range(3)]
            batch = [Token(one, place, members[place], True) for place, one in enumerate(tokens)]
            found[order] = float((Context(self, 3, LEAST, 3, "float32").run(batch) - wanted).abs().max())
        best = min(found, key=found.__getitem__)
        return best if found[best] < CLOSE * float(wanted.abs().max()) else 0

    def fact(self, key: str) -> str | None:
        """`told` of these weights."""
        return self.told(self.handle, key)


class Token(NamedTuple):
    """One position of a batch: its token, its place in the text, the sequences its cell belongs to (of which it sees
    one: see Weights.order), and whether its logits are wanted."""

    token: int
    place: int
    sequences: Sequence[int]
    wanted: bool


class Context:
    """Cells for `sequences` sequences over weights, and batches of at most `width` tokens. keys: float32 or float16,
    what keys and values are kept in. A sequence's places are 0, 1, 2, ... without a gap."""

    def __init__(self, weights: Weights, sequences: int, cells: int, width: int, keys: str) -> None:
        cpp = library()
        settings = cpp.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max, settings.kv_unified = cells, sequences, True
        width = max(width, sequences)  # it wants room for an output of every sequence
        settings.n_batch = settings.n_ubatch = width
        settings.attention_type = cpp.LLAMA_ATTENTION_TYPE_NON_CAUSAL
        settings.n_threads = settings.n_threads_batch = self.threads = torch.get_num_threads()
        settings.type_k = settings.type_v = getattr(cpp, KEYS[keys])
        # flash attention rounds to 16 bits on a processor, whatever the keys are
        settings.flash_attn_type = cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.weights, self.width, self.sequences = weights, width, sequences
        self.handle = cpp.llama_init_from_model(weights.handle, settings)
        if not self.handle:
            raise ModelError(f"llama.cpp: no context of {cells} cells for {sequences} sequences; ask for less at once")
        self.cells = cpp.llama_get_memory(self.handle)
        self._held = cpp.llama_batch_init(width, 0, sequences)
        # the weights stay until the last context over them is gone
        weakref.finalize(self, _freed, cpp, self.handle, self._held, weights)

    def drop(self, sequence: int, start: int) -> None:
        """Forget a sequence's cells from place `start` on."""
        library().llama_memory_seq_rm(self.cells, sequence, start, -1)

    def share(self, source: int, target: int, start: int, stop: int) -> None:
        """Let the cells of `source` at the places [start, stop) belong to `target` too."""
        library().llama_memory_seq_cp(self.cells, source, target, start, stop)

    def saved(self, sequence: int) -> Any:
        """A sequence's cells as bytes."""
        cpp = library()
        size = cpp.llama_state_seq_get_size(self.handle, sequence)
        held = (ctypes.c_uint8 * size)()
        cpp.llama_state_seq_get_data(self.handle, held, size, sequence)
        return held

    def restore(self, sequence: int, held: Any) -> None:
        """Give a sequence the cells that `saved` gave of one. RunError where there is no room."""
        if not library().llama_state_seq_set_data(self.handle, held, len(held), sequence):
            raise RunError("llama.cpp: a sequence's cells could not be moved; ask for less at once")

    def run(self, tokens: Sequence[Token]) -> Tensor:
        """One forward; logits [n, V] float32 of the wanted positions, in their order. RunError where llama.cpp
        refuses the batch."""
        cpp, batch = library(), self._held
        if (threads := torch.get_num_threads()) != self.threads:
            cpp.llama_set_n_threads(self.handle, threads, threads)
            self.threads = threads
        for index, (token, place, sequences, wanted) in enumerate(tokens):
            batch.token[index], batch.pos[index], batch.logits[index] = token, place, wanted
            batch.n_seq_id[index] = len(sequences)
            for number, sequence in enumerate(sequences):
                batch.seq_id[index][number] = sequence
        batch.n_tokens = len(tokens)
        if code := cpp.llama_decode(self.handle, batch):
            raise RunError(f"llama.cpp refused a batch of {len(tokens)} tokens (code {code})")
        shape = sum(one.wanted for one in tokens), self.weights.vocabulary
        if not shape[0]:
            return torch.zeros(shape)
        return torch.from_numpy(np.ctypeslib.as_array(cpp.llama_get_logits(self.handle), shape).copy())


def _freed(cpp: Any, context: Any, batch: Any, weights: Weights) -> None:
    cpp.llama_batch_free(batch)
    cpp.llama_free(context)
