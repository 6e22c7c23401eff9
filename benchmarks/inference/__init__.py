"""Speed of one chunk of actions: ``python -m benchmarks.inference``.

Fresh processes are timed by ``benchmarks/cold_start.py``.
"""
