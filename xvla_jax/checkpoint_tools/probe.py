"""Generated observations and noise to run a model on; the seed determines all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
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
CAMERA: Final = (
    480,
    640,
)  # px; no network takes it, so images are resized
_RELEASED: Final = Processor()  # 224 px, 3 views, 50 tokens
_LEAST_TEXT: Final = 8  # tokens


def make_inputs(
    config: XVLAConfig, processor: Processor | None, *, count: int, seed: int
) -> dict[str, np.ndarray]:
    """Generates observations and noise, as the network takes them.

    Observation i shows V - (i mod V) of the V views; the first two domains are the first and the
    last of the model, the others random. The text is that of instructions if the token table is
    large enough, else random ids with padding.

    Args:
        config: the model.
        processor: gives views, image side, text length and tokenizer; None uses the released
            values, or the largest that the model's tables hold.
        count: observations B.
        seed: of all random numbers.

    Returns:
        pixel_values float32[B, V, 3, S, S] normalised, image_mask bool[B, V], input_ids
        int32[B, L], domain_id int32[B], proprio float32[B, D], sample_noise and head_action
        float32[B, T, D], head_t float32[B] in (0, 1].
    """
    rng = np.random.default_rng(seed)
    processor = processor or _fitting_processor(config)
    views, side = processor.num_views, processor.image_size
    width = action_space(config).width
    chunk = (count, config.num_actions, width)
    mask = np.arange(views) < views - np.arange(count)[:, None] % views
    # Patches of one colour each: plain noise would look the same everywhere to the tower.
    cells = rng.integers(0, 256, (count, views, 3, -(-side // 8), -(-side // 8)))
    cells = cells.repeat(8, axis=3).repeat(8, axis=4)[..., :side, :side]
    grain = rng.integers(-20, 21, cells.shape)
    images = np.clip(cells + grain, 0, 255).astype(np.uint8).transpose(0, 1, 3, 4, 2)
    pixels = np.asarray(normalise(images, processor.mean, processor.std)).transpose(0, 1, 4, 2, 3)
    domains = rng.integers(0, config.num_domains, count)
    domains[:2] = (0, config.num_domains - 1)[:count]
    return {
        "pixel_values": pixels * mask[:, :, None, None, None],
        "image_mask": mask,
        "input_ids": _token_ids(config, processor, count, rng),
        "domain_id": domains.astype(np.int32),
        "proprio": rng.normal(0, 0.5, (count, width)).astype(np.float32),
        "sample_noise": rng.normal(size=chunk).astype(np.float32),
        "head_action": rng.normal(size=chunk).astype(np.float32),
        "head_t": ((count - np.arange(count)) / count).astype(np.float32),
    }


def raw_observations(
    config: XVLAConfig, processor: Processor, *, count: int, seed: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Generates observations as robots have them, of two cameras if the model has two views.

    Args:
        config: the model.
        processor: gives views, the width of the state, and the size of images if it is fixed.
        count: observations B; the last of two or more shows one camera alone.
        seed: of all random numbers.

    Returns:
        images uint8[B, V, H, W, 3], shown int[B] (views of each), proprio float32[B, d],
        sample_noise float32[B, T, D]; and B instructions.
    """
    rng, space = np.random.default_rng(seed), action_space(config)
    fixed = processor.resize == "none"
    height, width = (processor.image_size,) * 2 if fixed else CAMERA
    views = min(2, processor.num_views)
    cell = -(-height // 20)
    images = rng.integers(0, 256, (count, views, 20, -(-width // cell), 3))
    images = images.repeat(cell, axis=2).repeat(cell, axis=3)[:, :, :height, :width]
    images = np.clip(images + rng.integers(-20, 21, images.shape), 0, 255).astype(np.uint8)
    shown = np.full(count, views)
    shown[1:][-1:] = 1
    state = processor.state.width if processor.state else space.real_width
    arrays = {
        "images": images,
        "shown": shown,
        "proprio": rng.normal(0, 0.5, (count, state)).astype(np.float32),
        "sample_noise": rng.normal(size=(count, config.num_actions, space.width)),
    }
    arrays["sample_noise"] = arrays["sample_noise"].astype(np.float32)
    return arrays, [INSTRUCTIONS[i % len(INSTRUCTIONS)] for i in range(count)]


def prepare_raw(
    config: XVLAConfig,
    processor: Processor,
    arrays: Mapping[str, np.ndarray],
    tasks: Sequence[str],
    *,
    domain_id: int,
) -> dict[str, np.ndarray]:
    """Prepares `raw_observations` with a processor, in the form of `make_inputs`."""
    pairs = [
        processor.prepare_images(list(images[:shown]))
        for images, shown in zip(arrays["images"], arrays["shown"], strict=True)
    ]
    images, mask = (np.stack(part) for part in zip(*pairs, strict=True))
    pixels = np.asarray(normalise(images, processor.mean, processor.std))
    proprio, state = arrays["proprio"], processor.state
    if state:
        proprio = state.scale(proprio, what="proprio")
    missing = action_space(config).width - proprio.shape[1]
    count = len(tasks)
    return {
        "pixel_values": pixels.transpose(0, 1, 4, 2, 3) * mask[:, :, None, None, None],
        "image_mask": mask,
        "input_ids": processor.tokenize(tasks),
        "domain_id": np.full(count, domain_id, np.int32),
        "proprio": np.pad(proprio, ((0, 0), (0, missing))),
        "sample_noise": arrays["sample_noise"],
        "head_action": arrays["sample_noise"],
        "head_t": np.ones(count, np.float32),
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
    """Returns the released sizes, or the largest smaller ones that the position tables hold."""
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
    """Returns the side of the tower's last map for images of ``side`` pixels."""
    sizes = zip(vision.patch_size, vision.patch_stride, vision.patch_padding, strict=True)
    for kernel, stride, padding in sizes:
        side = (side + 2 * padding - kernel) // stride + 1
    return side
