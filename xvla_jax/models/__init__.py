"""The networks.

DaViT, Florence-2's encoder side, the soft-prompted Transformer, and X-VLA, which joins them.
"""
