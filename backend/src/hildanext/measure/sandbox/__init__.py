# The sandbox for generated code; see docs/sandbox.md.
# Entry points: Limits, Execution, run_program, Wall, walls, warning, TESTS.
# Importing it starts nothing.
"""hildanext.measure.sandbox."""

from hildanext.measure.sandbox.running import TESTS, Execution, Limits, Wall, run_program, walls, warning

__all__ = ["TESTS", "Limits", "Execution", "Wall", "run_program", "walls", "warning"]
