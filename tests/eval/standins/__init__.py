"""Simulators that cannot be installed here, by the shapes and calls of their APIs; no physics."""
