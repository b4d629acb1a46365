# The command line of lm-evaluation-harness with our model among its own, for releases of it that find no plugins.
# Entry points: main: the console script `lm_eval` of this package, and `python -m hildanext.measure.harness`.
# Newer releases read the entry point lm_eval.models themselves. The model is imported when it is asked for.
"""lm_eval with --model hildanext."""

from __future__ import annotations

import sys

from hildanext.errors import HildaError

NAME, TARGET = "hildanext", "hildanext.measure.harness:HildanextLM"


def main() -> None:
    """lm_eval's command line; a user's mistake is one line and exit code 2."""
    try:
        from lm_eval.__main__ import cli_evaluate

        _register()
    except ModuleNotFoundError as error:
        raise SystemExit(f"lm_eval: {error}; pip install 'hildanext[eval]' brings it") from None
    try:
        cli_evaluate()
    except HildaError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _register() -> None:
    from lm_eval.api import registry

    if hasattr(registry, "model_registry"):
        if NAME not in registry.model_registry:
            registry.model_registry.register(NAME, target=TARGET)
    else:
        pass  # 0.4.9 knows no names without their class
