"""Objectives of training beside the flow loss on recorded actions.

- ``distillation``: a teacher's chunks as the target of a student of few denoising steps.
"""
