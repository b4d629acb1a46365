# The mathematics: masks, noise, likelihood, block ladder, objectives.
# Entry points: the modules of this folder; types.py holds the shared records.
# torch only: no files, no transformers.
"""Core mathematics of block diffusion."""
