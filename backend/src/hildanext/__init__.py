# hildanext: an autoregressive language model becomes a block-diffusion language model, and is served.
# Entry points: load, Model, generate (model.py), open_engine, Request; the command line is hildanext.cli.
# Importing this package loads no torch; its names load what they need when they are first read. See docs/python.md.
"""Block-diffusion conversion, decoding and serving of Hugging Face causal language models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hildanext.decoding.request import Request
    from hildanext.engines.opening import open_engine
    from hildanext.model import Model, generate, load

__version__ = "0.1.0"
__all__ = ["Model", "Request", "__version__", "generate", "load", "open_engine"]

_ROOMS = {
    "Model": "model", "Request": "decoding.request", "generate": "model", "load": "model",
    "open_engine": "engines.opening",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"hildanext.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'hildanext' has no attribute {name!r}")
