"""The networks: DaViT, Florence-2's encoder, the soft-prompted Transformer, and XVLA, their sum.

Others use `xvla.XVLA` with `xvla.Context`, `xvla.init_params` and `xvla.abstract_params`,
`inference.inference_params`, the table `layers.REMAT`, and `kernels.COMPILER_OPTIONS`. Submodules
are for tests and for each other. Letters of the shape comments are those of ``layers.py``.
"""
