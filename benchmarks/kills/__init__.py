"""Training runs that are killed and restarted: ``python -m benchmarks.kills``."""
