"""From a base to a new robot: what a soft prompt and a pretrained small model are worth.

A base is trained on LIBERO demonstrations of three domains, and adapted to an SO-101 from few
demonstrations in several ways: ``python -m benchmarks.adaptation``.
"""
