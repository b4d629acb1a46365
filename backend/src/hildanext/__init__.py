# hildanext: an autoregressive language model becomes a block-diffusion language model, and is served.
# Entry points: generate, open_engine (both load torch only when called); the command line is hildanext.cli.
# Importing this package loads no torch.
"""Block-diffusion conversion, decoding and serving of Hugging Face causal language models."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "generate", "open_engine"]


def __getattr__(name: str) -> Any:
    if name in ("generate", "open_engine"):
        from hildanext.engines import opening

        return getattr(opening, name)
    raise AttributeError(f"module 'hildanext' has no attribute {name!r}")
