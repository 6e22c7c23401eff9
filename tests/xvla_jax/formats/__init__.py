"""Tests of ``xvla_jax.formats``."""
