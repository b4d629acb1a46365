# Package bench.device; see backend/README.md for its map.
# Entry points: the modules of this folder.
# Importing the package itself loads nothing heavy.
"""What bench gpu is made of."""
