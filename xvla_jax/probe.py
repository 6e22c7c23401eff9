"""Made-up observations and noise to run a model on; the seed says all."""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np

from xvla_jax.actions import action_space
from xvla_jax.batch import normalise
from xvla_jax.config import VisionConfig, XVLAConfig
from xvla_jax.errors import ConfigError
from xvla_jax.processor import Processor

PAD: Final = 1  # token id
INSTRUCTIONS: Final = (
    "pick up the black bowl and place it on the plate",
    "open the top drawer",
    "fold the towel in half, then in half again",
    "put both moka pots on the stove",
)
_RELEASED: Final = Processor()  # 224 px, 3 views, 50 tokens
_LEAST_TEXT: Final = 8  # tokens


def make_inputs(
    config: XVLAConfig, processor: Processor | None, *, count: int, seed: int
) -> dict[str, np.ndarray]:
    """Made-up observations and noise.

    Observation i shows V - (i mod V) of the V views; the domains begin with the first and the last
    and go on at random. Where the token table is large enough, the text is that of instructions,
    else random ids with padding.

    Args:
        config: the model.
        processor: gives views, image side, text length and tokenizer; without one the released
            values serve, or smaller ones where the model's tables end before.
        count: observations B.
        seed: of everything random.

    Returns:
        pixel_values float32[B, V, 3, S, S] normalised, image_mask bool[B, V], input_ids
        int32[B, L], domain_id int32[B], proprio float32[B, D], sample_noise and head_action
        float32[B, T, D], head_t float32[B] in (0, 1].
    """
    rng = np.random.default_rng(seed)
    made = processor or _fitting_processor(config)
    views, side = made.num_views, made.image_size
    width = action_space(config).width
    chunk = (count, config.num_actions, width)
    mask = np.arange(views) < views - np.arange(count)[:, None] % views
    # Patches of even colour: plain noise would look the same everywhere to the tower.
    cells = rng.integers(0, 256, (count, views, 3, -(-side // 8), -(-side // 8)))
    cells = cells.repeat(8, axis=3).repeat(8, axis=4)[..., :side, :side]
    grain = rng.integers(-20, 21, cells.shape)
    images = np.clip(cells + grain, 0, 255).astype(np.uint8).transpose(0, 1, 3, 4, 2)
    pixels = np.asarray(normalise(images, made.mean, made.std)).transpose(0, 1, 4, 2, 3)
    domains = rng.integers(0, config.num_domains, count)
    domains[:2] = (0, config.num_domains - 1)[:count]
    return {
        "pixel_values": pixels * mask[:, :, None, None, None],
        "image_mask": mask,
        "input_ids": _token_ids(config, made, count, rng),
        "domain_id": domains.astype(np.int32),
        "proprio": rng.normal(0, 0.5, (count, width)).astype(np.float32),
        "sample_noise": rng.normal(size=chunk).astype(np.float32),
        "head_action": rng.normal(size=chunk).astype(np.float32),
        "head_t": ((count - np.arange(count)) / count).astype(np.float32),
    }


def _token_ids(
    config: XVLAConfig, processor: Processor, count: int, rng: np.random.Generator
) -> np.ndarray:
    texts = [INSTRUCTIONS[i % len(INSTRUCTIONS)] for i in range(count)]
    ids = processor.tokenize(texts)
    if ids.max() < config.text.vocab_size:
        return ids
    ids = rng.integers(3, config.text.vocab_size, (count, processor.text_length), dtype=np.int32)
    lengths = rng.integers(3, processor.text_length + 1, count)
    ids[np.arange(processor.text_length) >= lengths[:, None]] = PAD
    return ids


def _fitting_processor(config: XVLAConfig) -> Processor:
    """The released sizes, or the largest smaller ones that the model's position tables hold."""
    views = _RELEASED.num_views
    for side in range(_RELEASED.image_size, 0, -32):  # four stages of stride 4, 2, 2, 2
        map_side = _map_side(config.vision, side)
        sources = config.vision.image_feature_source
        tokens = sum(1 if name == "spatial_avg_pool" else map_side**2 for name in sources)
        text = min(
            _RELEASED.text_length,
            config.text.max_position_embeddings - tokens,
            config.max_len_seq - config.num_actions - views * tokens,
        )
        if map_side <= config.vision.max_pos_embeddings and text >= _LEAST_TEXT:
            return dataclasses.replace(_RELEASED, image_size=side, text_length=text)
    raise ConfigError(
        f"{views} views, a text and {config.num_actions} actions do not fit max_len_seq = "
        f"{config.max_len_seq} and max_position_embeddings = {config.text.max_position_embeddings}"
    )


def _map_side(vision: VisionConfig, side: int) -> int:
    """Side of the tower's last map for images of ``side`` pixels."""
    sizes = zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True)
    for kernel, stride, padding in sizes:
        side = (side + 2 * padding - kernel) // stride + 1
    return side
