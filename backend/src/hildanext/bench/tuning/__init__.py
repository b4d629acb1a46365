# Package bench.tuning; see backend/README.md for its map.
# Entry points: the modules of this folder.
# Importing the package itself loads nothing heavy.
"""What hildanext tune is made of."""
