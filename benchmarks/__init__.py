"""Measurements, run by hand (``python -m benchmarks.data``); no test asserts their figures.

A folder is one subject: ``data``, ``inference``, ``training``, ``adaptation``, ``kills``,
``serving`` and ``evaluation``. Its ``__main__`` has the flags and prints the tables. Modules beside
the folders are commands of one file, such as ``kernels``, and programs that the subjects start as
processes of their own: ``cold_start``, ``train_step``, ``torch_train_step`` and ``xvla_reader``.
``timing`` has the clocks that several subjects use.
"""
