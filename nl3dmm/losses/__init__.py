"""Renderings -> numbers: pure loss functions with per-sample values, and their weighted sum."""
