"""Measurements of this server: `python -m benchmarks.serve`, `.scaling`, `.bare`."""
