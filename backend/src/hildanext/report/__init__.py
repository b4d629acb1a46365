# Package report; see backend/README.md for its map.
# Entry points: the modules of this folder.
# Importing the package itself loads nothing heavy.
"""Charts, pages, frames, plots, intervals, the terminal."""
