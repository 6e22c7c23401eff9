"""Tests of ``xvla_jax/compilation/``."""
