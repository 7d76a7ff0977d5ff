"""Speed of nl3dmm on this machine: ``python -m benchmarks``."""
