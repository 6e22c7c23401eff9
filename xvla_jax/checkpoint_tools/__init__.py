"""Work on complete checkpoints: ``convert_layout``, ``compare`` and ``domains``.

Commands use them; of the library's other rooms the server alone does, which reads certificates of
sampler plans (``certificate``). ``probe`` makes inputs for the comparisons.
"""
