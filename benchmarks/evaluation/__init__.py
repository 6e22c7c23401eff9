"""Cost and repeatability of an evaluation: ``python -m benchmarks.evaluation``."""
