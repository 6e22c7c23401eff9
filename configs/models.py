"""Shapes of X-VLA models, in the words of ``config.json``: released size, quickstart size, test size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def model_dict(
    *,
    action_mode: str,
    hidden_size: int,
    depth: int,
    num_heads: int,
    len_soft_prompts: int,
    dim_time: int,
    num_actions: int,
    text_width: int,
    text_layers: int,
    text_heads: int,
    text_positions: int,
    vision: Mapping[str, Sequence[int]],
    window_size: int,
    text_dropout: float,
    drop_path_rate: float,
) -> dict[str, Any]:
    """A ``config.json`` from the numbers in which our models differ; the rest is as released."""
    return {
        "model_type": "xvla",
        "action_mode": action_mode,
        "use_proprio": True,
        "hidden_size": hidden_size,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_ratio": 4.0,
        "num_domains": 30,
        "len_soft_prompts": len_soft_prompts,
        "dim_time": dim_time,
        "max_len_seq": 512,
        "use_hetero_proj": False,
        "num_actions": num_actions,
        "florence_config": {
            "model_type": "florence2",
            "projection_dim": text_width,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "text_config": {
                "vocab_size": 51289,
                "d_model": text_width,
                "encoder_layers": text_layers,
                "encoder_attention_heads": text_heads,
                "encoder_ffn_dim": 4 * text_width,
                "max_position_embeddings": text_positions,
                "dropout": text_dropout,
                "attention_dropout": text_dropout,
                "activation_dropout": text_dropout,
                "activation_function": "gelu",
            },
            "vision_config": {
                "model_type": "davit",
                "drop_path_rate": drop_path_rate,
                "patch_size": [7, 3, 3, 3],
                "patch_stride": [4, 2, 2, 2],
                "patch_padding": [3, 1, 1, 1],
                "patch_prenorm": [False, True, True, True],
                **{name: list(values) for name, values in vision.items()},
                "window_size": window_size,
                "projection_dim": text_width,
                "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 100},
                "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 50},
                "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
            },
        },
    }


def released() -> dict[str, Any]:
    """The 0.9 B model: 879,482,456 parameters."""
    return model_dict(
        action_mode="ee6d",
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
        vision={
            "dim_embed": (256, 512, 1024, 2048),
            "num_heads": (8, 16, 32, 64),
            "num_groups": (8, 16, 32, 64),
            "depths": (1, 1, 9, 1),
        },
        window_size=12,
        text_dropout=0.1,
        drop_path_rate=0.1,
    )


def small() -> dict[str, Any]:
    """Quickstart size: the same parts and the same chunk of 30 actions, trainable on two cores."""
    return model_dict(
        action_mode="ee6d",
        hidden_size=192,
        depth=4,
        num_heads=6,
        len_soft_prompts=8,
        dim_time=32,
        num_actions=30,
        text_width=128,
        text_layers=2,
        text_heads=4,
        text_positions=128,
        vision={
            "dim_embed": (32, 64, 128, 192),
            "num_heads": (1, 2, 4, 6),
            "num_groups": (1, 2, 4, 6),
            "depths": (1, 1, 1, 1),
        },
        window_size=6,
        text_dropout=0.0,
        drop_path_rate=0.0,
    )


def tiny() -> dict[str, Any]:
    """Test size: seconds to compile, nothing to learn with."""
    return model_dict(
        action_mode="ee6d",
        hidden_size=32,
        depth=2,
        num_heads=2,
        len_soft_prompts=4,
        dim_time=8,
        num_actions=6,
        text_width=16,
        text_layers=2,
        text_heads=2,
        text_positions=128,
        vision={
            "dim_embed": (8, 8, 16, 16),
            "num_heads": (1, 1, 2, 2),
            "num_groups": (1, 1, 2, 2),
            "depths": (1, 1, 1, 1),
        },
        window_size=3,
        text_dropout=0.1,
        drop_path_rate=0.1,
    )
