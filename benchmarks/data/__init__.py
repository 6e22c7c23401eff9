"""Speed, resume and memory of the data pipeline: ``python -m benchmarks.data``.

X-VLA's reader, its yardstick, is ``benchmarks/xvla_reader.py``.
"""
