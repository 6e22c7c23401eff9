"""Numbers and images as a checkpoint's training saw them, on the host and in numpy alone.

`xvla_jax.processor.Processor` says which `resizing` and which `scaling` belong to a checkpoint.
"""
