"""What a run needs of a TPU slice, found by compiling it for that slice; no TPU is needed.

The chips, the programs and their memory, their traffic, an estimate of time, and the search for a
batch or a neighbouring config that fits.
"""
