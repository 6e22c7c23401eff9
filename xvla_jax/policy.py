"""Policy: observations in, chunks of actions out, jitted and batched."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import jax
import jax.numpy as jnp
import numpy as np

from xvla_jax import flow
from xvla_jax.actions import action_space
from xvla_jax.batch import Observation, check_domains, normalise
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract
from xvla_jax.errors import CheckpointError, InputError
from xvla_jax.models.xvla import XVLA, Context, abstract_inference_params, inference_params
from xvla_jax.pretrained import load_checkpoint
from xvla_jax.processor import Processor

STEPS: Final = 10  # denoising steps, everywhere in X-VLA


class Policy:
    """A checkpoint that acts.

    Batches are padded to the next power of two, so few programs are compiled. The noise of an
    observation is a function of its seed alone: the result does not depend on the batch it lands
    in.
    """

    def __init__(
        self,
        config: XVLAConfig,
        params: Mapping[str, Any],
        processor: Processor,
        contracts: Mapping[int, Contract],
        *,
        dtype: Any = jnp.float32,
    ) -> None:
        """Puts the parameters on the default device."""
        self.config = config
        self.processor = processor
        self.contracts = dict(contracts)
        self._space = action_space(config)
        self.model = XVLA(config, dtype=dtype, unroll=True)
        self.params = inference_params(params, dtype, place=jax.device_put)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], *, dtype: Any = jnp.float32) -> Policy:
        """Loads any layout that `xvla_jax.load_pretrained` reads.

        The folder must hold its processor files.
        """
        # From disk to the device layer by layer: one copy in memory.
        loaded = load_checkpoint(folder, stored=True)
        if loaded.processor is None:
            raise CheckpointError(
                f"{folder} has no preprocessor_config.json; "
                "image size and resampling are part of the policy"
            )
        return cls(loaded.config, loaded.params, loaded.processor, loaded.contracts, dtype=dtype)

    def act(
        self,
        observations: Sequence[Observation],
        *,
        steps: int = STEPS,
        seed: int | Sequence[int] = 0,
    ) -> np.ndarray:
        """Chunks for a batch of observations, robots mixed at will.

        Args:
            observations: at least one.
            steps: denoising steps.
            seed: one for all, or one per observation.

        Returns:
            float32[B, T, D], postprocessed: grippers are probabilities of closed.

        Raises:
            InputError: an observation does not fit the model; the message names it and the field.
        """
        if not observations:
            raise InputError("act was given no observation; at least one is needed")
        seeds = [seed] * len(observations) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(observations):
            raise InputError(
                f"{len(seeds)} seeds for {len(observations)} observations; one each is expected"
            )
        inputs = self._collate(observations)
        inputs["seed"] = np.asarray(seeds, np.uint32)
        padding = _bucket(len(observations)) - len(observations)
        inputs = {
            k: np.concatenate([v, np.repeat(v[:1], padding, axis=0)]) for k, v in inputs.items()
        }
        actions = _chunk(*self._static, self.params, inputs, steps=steps)
        return np.asarray(actions)[: len(observations)]

    def _collate(self, observations: Sequence[Observation]) -> dict[str, np.ndarray]:
        check_domains([o["domain_id"] for o in observations], self.config)
        prepared = [self.processor.prepare_images(o["images"]) for o in observations]
        proprio = [np.asarray(o["proprio"], np.float32) for o in observations]
        for i, state in enumerate(proprio):
            if state.shape != (self._space.width,) or not np.isfinite(state).all():
                raise InputError(
                    f"observation {i}: proprio has shape {state.shape}; {self._space.width} finite "
                    f"numbers are expected by action space {self._space.mode!r}"
                )
        view_mask = np.stack([mask for _, mask in prepared])
        # Slots behind the last view of the batch stay out of the tower: a program per view count.
        shown = int(np.flatnonzero(view_mask.any(axis=0))[-1]) + 1
        return {
            "images": np.stack([images[:shown] for images, _ in prepared]),
            "view_mask": view_mask,
            "input_ids": self.processor.tokenize([o["instruction"] for o in observations]),
            "proprio": np.stack(proprio),
            "domain_id": np.asarray([o["domain_id"] for o in observations], np.int32),
        }

    def lower(self, *, views: int, batch: int, steps: int = STEPS) -> jax.stages.Lowered:
        """The program of `act` for a batch size and a number of views, before it is compiled.

        Compiled, it takes ``policy.params`` and what `example_inputs` shows; it is one dispatch,
        without a round trip to the host between steps.
        """
        inputs = jax.eval_shape(lambda: self.example_inputs(views=views, batch=batch))
        return _chunk.lower(*self._static, self.params, inputs, steps=steps)

    def example_inputs(self, *, views: int, batch: int) -> dict[str, np.ndarray]:
        """Inputs of zeros, as `act` hands them to the device."""
        return _example_inputs(self.processor, self._space.width, views, batch)

    @property
    def _static(self) -> tuple[XVLA, tuple[float, ...], tuple[float, ...]]:
        return self.model, tuple(self.processor.mean), tuple(self.processor.std)


@functools.partial(jax.jit, static_argnames=("model", "mean", "std", "steps"))
def _chunk(
    model: XVLA,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    params: Any,
    inputs: Mapping[str, jax.Array],
    *,
    steps: int,
) -> jax.Array:
    """Policies of one model share their programs, and no program keeps a policy's weights alive."""
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
        steps=steps,
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
    width = action_space(config).width
    inputs = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda: _example_inputs(processor, width, views, batch)),
    )
    return _chunk.lower(
        XVLA(config, dtype=dtype, unroll=True),
        tuple(processor.mean),
        tuple(processor.std),
        abstract_inference_params(config, dtype, sharding),
        inputs,
        steps=steps,
    )


def _example_inputs(
    processor: Processor, width: int, views: int, batch: int
) -> dict[str, np.ndarray]:
    side = processor.image_size
    return {
        "images": np.zeros((batch, views, side, side, 3), np.uint8),
        "view_mask": np.tile(np.arange(processor.num_views) < views, (batch, 1)),
        "input_ids": np.ones((batch, processor.text_length), np.int32),
        "proprio": np.zeros((batch, width), np.float32),
        "domain_id": np.zeros(batch, np.int32),
        "seed": np.zeros(batch, np.uint32),
    }


def _bucket(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()
