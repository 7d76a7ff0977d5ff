"""Faces out of photos: locate, optimise, and the work of the fit command."""
