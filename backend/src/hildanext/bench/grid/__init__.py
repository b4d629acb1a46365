# Training configurations beside each other at one budget: `hildanext compare --config grid.json`.
# Entry points: running.run_grid (all cells), cell.run_cell (one), scoring.scored (its evaluation), page.grid_page,
# paired.paired_cells (at equal tokens).
# Everything a cell writes is in its folder, so that a killed grid costs at most a part of one cell.
"""The comparison grid."""
