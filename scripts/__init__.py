"""Thin mains, run as `python -m scripts.NAME`: here alone data, xvla_jax and eval meet."""
