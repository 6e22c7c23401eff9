"""Tests of xvla_jax/models."""
