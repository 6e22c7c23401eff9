"""Cost of a train step and of a save: ``python -m benchmarks.training``.

The two sides of a step are ``benchmarks/train_step.py`` and ``benchmarks/torch_train_step.py``.
"""
