"""Recorded demonstrations -> batches of numpy arrays. Knows TensorFlow, and nothing of JAX.

Here lie the parts that all rooms use: spec (a dataset as a row), trajectory (what readers yield),
texts, images, poses, faults, untrusted files, randomness; and sources, which opens datasets. Rooms:
rows (the table of datasets), readers (one for each storage), stream (the way to the batch), writing
(RLDS datasets), inspection (the data doctor) and pixels (compiled resizing).
"""
