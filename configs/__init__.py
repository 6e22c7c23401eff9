"""Experiments as plain values: no code of ours is imported here."""
