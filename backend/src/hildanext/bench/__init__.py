# Package bench; see backend/README.md for its map.
# Entry points: the modules of this folder.
# Importing the package itself loads nothing heavy.
"""Measurements of speed and memory; a file here is a part of `hildanext bench`."""
