# llama.cpp by llama-cpp-python's low-level calls: what llamacpp.mjs does, in a process of its own.
# Entry points: run as a module with the job as JSON; main.
# Lines of JSON in (prompt, new, ends), lines of JSON out (ids, wall, cpu). Nothing of the decoder is imported.
"""Worker around llama-cpp-python."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np


def main(job: dict[str, Any]) -> None:
    """Serve greedy continuations until stdin ends. job: file, threads (a count), window (tokens)."""
    import llama_cpp as cpp

    cpp.llama_backend_init()
    quiet = cpp.llama_log_callback(_unheard)
    cpp.llama_log_set(quiet, None)
    model = cpp.llama_model_load_from_file(job["file"].encode(), cpp.llama_model_default_params())
    settings = cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = job["window"]
    settings.n_threads = settings.n_threads_batch = job["threads"]
    context = cpp.llama_init_from_model(model, settings)
    words = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(model))
    _say({"threads": cpp.llama_n_threads(context)})
    for line in sys.stdin:
        asked = json.loads(line)
        cpp.llama_memory_clear(cpp.llama_get_memory(context), True)
        wall, used = time.perf_counter(), time.process_time()
        ids = _greedy(cpp, context, words, asked)
        _say({"ids": ids, "wall": time.perf_counter() - wall, "cpu": time.process_time() - used})


def _greedy(cpp: Any, context: Any, words: int, asked: dict[str, Any]) -> list[int]:
    ids: list[int] = []
    ends, given = set(asked["ends"]), list(asked["prompt"])
    while len(ids) < asked["new"] and not (ids and ids[-1] in ends):
        _decode(cpp, context, given)
        scores = np.ctypeslib.as_array(cpp.llama_get_logits_ith(context, -1), (words,))
        ids.append(int(scores.argmax()))
        given = ids[-1:]
    return ids


def _decode(cpp: Any, context: Any, given: Sequence[int]) -> None:
    held = (cpp.llama_token * len(given))(*given)
    if code := cpp.llama_decode(context, cpp.llama_batch_get_one(held, len(given))):
        raise RuntimeError(f"llama_decode gave {code}")


def _unheard(level: int, text: bytes, data: Any) -> None:
    return None


def _say(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[-1]))
