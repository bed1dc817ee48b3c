"""Comparisons that docs cite: `python -m benchmarks.NAME` runs one, `python -m benchmarks` all."""
