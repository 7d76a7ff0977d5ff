"""Compositions of the same parts, one file per paper."""
