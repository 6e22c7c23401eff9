"""Demonstrations from simulators, written as .npz files for the RLDS writer of data/.

`demonstrations.Recording` records the scripted expert; `libero_absolute.Conversion` converts
LIBERO's public recordings to absolute commands. Both resume after a stop.
"""
