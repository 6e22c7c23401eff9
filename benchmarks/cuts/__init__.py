"""A run of four hosts whose network, processes and hosts fail: ``python -m benchmarks.cuts``."""
