"""The parts of ``scripts/check_equivalence.py``.

``report`` compares the sides; ``raw`` does so from raw observations on; ``torch_process`` starts
``torch_reference``, a program for an interpreter with PyTorch, whose parts are ``torch_packages``
and ``torch_lerobot``.
"""
