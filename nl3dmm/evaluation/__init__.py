"""Errors against exact truth, and what models can represent."""
