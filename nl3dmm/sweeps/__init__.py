"""Grids of runs: planned, run, compared."""
