"""The compiled program of a policy: observations in, one chunk each out, in a single dispatch."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from xvla_jax import flow
from xvla_jax.actions import action_space
from xvla_jax.batch import normalise
from xvla_jax.config import XVLAConfig
from xvla_jax.inpainting import Prefix
from xvla_jax.models.xvla import XVLA, Context, abstract_inference_params
from xvla_jax.processor import Processor


@functools.partial(jax.jit, static_argnames=("model", "mean", "std", "steps"))
def chunk(
    model: XVLA,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    params: Any,
    inputs: Mapping[str, jax.Array],
    *,
    steps: int | None = None,
) -> jax.Array:
    """Chunks ``float32[B, T, D]`` for the inputs that `example_inputs` shows.

    Policies of one model share their programs, and no program keeps a policy's weights alive.
    Without ``steps`` the inputs have them, one number for each observation. A prefix is an input as
    well, so that there is one program for all lengths of it, none among them.
    """
    shape = (model.config.num_actions, action_space(model.config).width)
    noise = jax.vmap(lambda s: jax.random.normal(jax.random.key(s), shape, jnp.float32))(
        inputs["seed"]
    )
    pixels = normalise(inputs["images"], mean, std)
    context = model.apply(
        {"params": params}, pixels, inputs["view_mask"], inputs["input_ids"], method="encode"
    )
    return flow.sample(
        model,
        params,
        cast(Context, context),
        inputs["proprio"],
        inputs["domain_id"],
        noise=noise,
        steps=inputs["steps"] if steps is None else steps,
        prefix=Prefix(inputs["prefix"], inputs["prefix_weight"]),
    )


def lower_sampler(
    config: XVLAConfig,
    processor: Processor,
    *,
    dtype: Any,
    views: int,
    batch: int,
    steps: int,
    sharding: jax.sharding.Sharding,
) -> jax.stages.Lowered:
    """The program of `Policy.act` from shapes alone, for devices that need not be there."""
    shape = config.num_actions, action_space(config).width
    inputs = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda: example_inputs(processor, shape, views, batch)),
    )
    return chunk.lower(
        XVLA(config, dtype=dtype, unroll=True),
        tuple(processor.mean),
        tuple(processor.std),
        abstract_inference_params(config, dtype, sharding),
        inputs,
        steps=steps,
    )


def example_inputs(
    processor: Processor, shape: tuple[int, int], views: int, batch: int
) -> dict[str, np.ndarray]:
    """Inputs of zeros, for one observation or several alike.

    Args:
        processor: of the policy.
        shape: of a chunk, T and D.
        views: that are shown.
        batch: size.
    """
    side = processor.image_size
    return {
        "images": np.zeros((batch, views, side, side, 3), processor.pixel_dtype),
        "view_mask": np.tile(np.arange(processor.num_views) < views, (batch, 1)),
        "input_ids": np.ones((batch, processor.text_length), np.int32),
        "proprio": np.zeros((batch, shape[1]), np.float32),
        "domain_id": np.zeros(batch, np.int32),
        "seed": np.zeros(batch, np.uint32),
        "prefix": np.zeros((batch, *shape), np.float32),
        "prefix_weight": np.zeros((batch, shape[0]), np.float32),
    }
