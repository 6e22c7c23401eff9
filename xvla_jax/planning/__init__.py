"""Memory and step time of a run on a TPU slice, predicted by compiling for it; needs no TPU.

``report`` (``make_plan``) answers for a run; the rest are its parts: ``chips`` and slices,
``programs`` and their memory, ``hlo`` (compiled text), ``flops`` and ``traffic``. Other rooms use
``flops`` to count the work of a step.
"""
