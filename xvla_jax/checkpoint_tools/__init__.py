"""Work on complete checkpoints: ``convert_layout``, ``compare`` and ``domains``.

Commands use them; no other room of the library does. ``probe`` makes inputs for the comparisons.
"""
