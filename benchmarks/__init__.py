"""Measurements, run by hand (``python -m benchmarks.data``); no test asserts their figures.

A folder is one subject: ``data``, ``inference``, ``training``, ``kills``, ``serving`` and
``evaluation``. Its ``__main__`` has the flags and prints the tables. The modules beside the folders
run in processes of their own: ``cold_start``, ``train_step``, ``torch_train_step`` and
``xvla_reader``; ``timing`` has the clocks that several subjects use.
"""
