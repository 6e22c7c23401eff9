"""Shapes of X-VLA models: released size, quickstart size, test size."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Shape:
    """The numbers in which our models differ; the rest is as released."""

    hidden_size: int  # of the policy head
    depth: int
    num_heads: int
    len_soft_prompts: int
    dim_time: int
    num_actions: int
    text_width: int  # of the BART encoder and of image tokens
    text_layers: int
    text_heads: int
    text_positions: int
    dim_embed: tuple[int, ...]  # DaViT, per stage
    vision_heads: tuple[int, ...]  # heads of windows and groups of channels, per stage
    depths: tuple[int, ...]  # block pairs, per stage
    window_size: int
    dropout: float  # of the text encoder, and drop path of the tower


RELEASED = Shape(
    hidden_size=1024,
    depth=24,
    num_heads=16,
    len_soft_prompts=32,
    dim_time=32,
    num_actions=30,
    text_width=1024,
    text_layers=12,
    text_heads=16,
    text_positions=4096,
    dim_embed=(256, 512, 1024, 2048),
    vision_heads=(8, 16, 32, 64),
    depths=(1, 1, 9, 1),
    window_size=12,
    dropout=0.1,
)
"""The 0.9 B model: 879,482,456 parameters."""

SMALL = Shape(
    hidden_size=128,
    depth=3,
    num_heads=4,
    len_soft_prompts=8,
    dim_time=32,
    num_actions=30,
    text_width=96,
    text_layers=2,
    text_heads=3,
    text_positions=64,
    dim_embed=(16, 32, 64, 128),
    vision_heads=(1, 2, 4, 4),
    depths=(1, 1, 1, 1),
    window_size=4,
    dropout=0.0,
)
"""Quickstart size: the same parts and the same chunk of 30 actions, trainable on two cores."""

TINY = Shape(
    hidden_size=32,
    depth=2,
    num_heads=2,
    len_soft_prompts=4,
    dim_time=8,
    num_actions=6,
    text_width=16,
    text_layers=2,
    text_heads=2,
    text_positions=64,
    dim_embed=(8, 8, 16, 16),
    vision_heads=(1, 1, 2, 2),
    depths=(1, 1, 1, 1),
    window_size=3,
    dropout=0.1,
)
"""Test size: quick to compile, too small to train anything with."""


def model_dict(shape: Shape, *, action_mode: str) -> dict[str, Any]:
    """A shape as ``config.json``."""
    text = {
        "vocab_size": 51289,
        "d_model": shape.text_width,
        "encoder_layers": shape.text_layers,
        "encoder_attention_heads": shape.text_heads,
        "encoder_ffn_dim": 4 * shape.text_width,
        "max_position_embeddings": shape.text_positions,
        "dropout": shape.dropout,
        "attention_dropout": shape.dropout,
        "activation_dropout": shape.dropout,
    }
    vision = {
        "model_type": "davit",
        "drop_path_rate": shape.dropout,
        "patch_size": [7, 3, 3, 3],
        "patch_stride": [4, 2, 2, 2],
        "patch_padding": [3, 1, 1, 1],
        "patch_prenorm": [False, True, True, True],
        "dim_embed": list(shape.dim_embed),
        "num_heads": list(shape.vision_heads),
        "num_groups": list(shape.vision_heads),
        "depths": list(shape.depths),
        "window_size": shape.window_size,
        "projection_dim": shape.text_width,
        "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 100},
        "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 50},
        "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
    }
    return {
        "model_type": "xvla",
        "action_mode": action_mode,
        "hidden_size": shape.hidden_size,
        "depth": shape.depth,
        "num_heads": shape.num_heads,
        "num_domains": 30,
        "len_soft_prompts": shape.len_soft_prompts,
        "dim_time": shape.dim_time,
        "num_actions": shape.num_actions,
        "florence_config": {
            "model_type": "florence2",
            "projection_dim": shape.text_width,
            "text_config": text,
            "vision_config": vision,
        },
    }
