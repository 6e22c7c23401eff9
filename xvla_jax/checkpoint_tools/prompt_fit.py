"""Soft prompts of a checkpoint on a new robot's data: what a linear head could make of them.

A new robot needs a head of its own, whatever prompt it begins with, so a prompt is judged by the
best head: the last layer is fitted by least squares to one part of the data, and measured on
another. Nothing is trained, and the action space need not be the checkpoint's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from xvla_jax import flow
from xvla_jax.actions import action_space
from xvla_jax.batch import CHANNEL_MASK, normalise
from xvla_jax.errors import InputError
from xvla_jax.models.xvla import XVLA
from xvla_jax.processor import Processor

Array = jax.Array
HostBatch = Mapping[str, np.ndarray]
Parts = Iterable[tuple[HostBatch, bool]]  # a batch, and True where it is held out of the fit

_DECODED: Final = ("transformer", "norm")  # the layer whose output the last layer takes
_RIDGE: Final = 1e-4  # of the mean square of a feature: the fit is defined with few samples too
_STILL: Final = 1e-6  # a channel that moves less, in its own unit, is not judged


def unexplained(
    model: XVLA,
    params: Any,
    processor: Processor,
    parts: Parts,
    *,
    domain_ids: Sequence[int],
    batch_size: int,
    seed: int,
) -> dict[int, float]:
    """Returns the share of the held-out actions' variance that each domain leaves unexplained.

    See `HeadFit`. Noise and flow times are drawn as in training, the same for all domains.

    Args:
        model: the module, in the action space of the data.
        params: its parameters; the last layer's are not used.
        processor: mean and deviation of the images.
        parts: batches of the data, those to fit and those that are held out.
        domain_ids: rows whose prompt and projections are judged.
        batch_size: rows of the compiled program; a shorter batch is filled up.
        seed: of noise and times.

    Raises:
        InputError: see `HeadFit.unexplained`.
    """
    features, params = _features(model, processor), jax.device_put(params)
    fits = {
        i: HeadFit(model.config.hidden_size + 1, action_space(model.config).width)
        for i in domain_ids
    }
    for number, (batch, held) in enumerate(parts):
        rows = len(batch["actions"])
        filled = {k: v[np.minimum(np.arange(batch_size), rows - 1)] for k, v in batch.items()}
        key = jax.random.fold_in(jax.random.key(seed), number)
        actions = np.asarray(action_space(model.config).pad(jnp.asarray(batch["actions"])))
        targets = actions.reshape(-1, actions.shape[-1]).astype(np.float64)  # [B * T, D]
        for domain_id, values in features(params, filled, domain_ids, key):
            tokens = np.asarray(values, np.float64)[:rows]  # [B, T, M]
            inputs = tokens.reshape(-1, tokens.shape[-1])
            fits[domain_id].add(
                np.pad(inputs, ((0, 0), (0, 1)), constant_values=1), targets, held=held
            )
    return {domain_id: fit.unexplained() for domain_id, fit in fits.items()}


class HeadFit:
    """A linear head, fitted to some samples by least squares and measured on others.

    Only sums are kept, whatever the number of samples.

    Args:
        inputs: numbers of an input, the last of which is always 1.
        outputs: numbers of an output.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        shapes = ((inputs, inputs), (inputs, outputs), (outputs,))
        # [fitted, held out] of inputs x inputs, inputs x outputs, squares of outputs
        self._sums = [[np.zeros(shape) for shape in shapes] for _ in range(2)]

    def add(self, inputs: np.ndarray, outputs: np.ndarray, *, held: bool) -> None:
        """Adds samples ``[N, inputs]`` and ``[N, outputs]``, to fit or to measure on."""
        products = (inputs.T @ inputs, inputs.T @ outputs, np.square(outputs).sum(axis=0))
        for total, product in zip(self._sums[held], products, strict=True):
            total += product

    def unexplained(self) -> float:
        """Returns the share of the held-out variance that the head leaves.

        0 is a perfect head, 1 is as good as the mean of the fitted samples. The share is a mean
        over the outputs that vary.

        Raises:
            InputError: nothing was fitted or held out, or no output varies.
        """
        (square, cross, _), (held_square, held_cross, energy) = self._sums
        # the last input is 1, so its products are counts and sums
        count, held_count = square[-1, -1], held_square[-1, -1]
        if not count or not held_count:
            raise InputError(
                f"{count:.0f} samples to fit and {held_count:.0f} held out; both are needed"
            )
        ridge = _RIDGE * np.trace(square) / len(square)
        head = np.linalg.solve(square + ridge * np.eye(len(square)), cross)
        # |y - h x|^2 = y^2 - 2 h x y + h x x h, summed over the held-out samples, by output
        error = energy - 2 * (head * held_cross).sum(axis=0)
        error += (head * (held_square @ head)).sum(axis=0)
        mean = cross[-1] / count
        spread = energy - 2 * mean * held_cross[-1] + held_count * np.square(mean)
        varying = spread > held_count * _STILL**2
        if not varying.any():
            raise InputError("no channel of the held-out actions moves")
        return float(np.mean(error[varying] / spread[varying]))


_Features = Callable[[Any, HostBatch, Sequence[int], Array], Iterable[tuple[int, Array]]]


def _features(model: XVLA, processor: Processor) -> _Features:
    """Returns a function that yields what the last layer takes, ``[B, T, M]``, by domain."""
    space = action_space(model.config)

    @jax.jit
    def encode(params: Any, batch: Mapping[str, Array]) -> Any:
        pixels = normalise(batch["images"], processor.mean, processor.std)
        return model.apply(
            {"params": params}, pixels, batch["view_mask"], batch["input_ids"], method="encode"
        )

    @jax.jit
    def decoded(
        params: Any, context: Any, batch: Mapping[str, Array], domain_id: Array, key: Array
    ) -> Array:
        noise_key, time_key = jax.random.split(key)
        actions = batch["actions"]  # [B, T, d]
        noise = jax.random.normal(noise_key, actions.shape, jnp.float32)
        t = flow.stratified_time(jax.random.uniform(time_key), len(actions))  # [B]
        proprio, noisy = space.preprocess(
            batch["proprio"], flow.interpolate(noise, actions, t), batch.get(CHANNEL_MASK)
        )
        applied: Any = model.apply(
            {"params": params},
            context,
            noisy,
            proprio,
            jnp.broadcast_to(domain_id, t.shape),
            t,
            method="denoise",
            capture_intermediates=lambda module, _: module.path == _DECODED,
            mutable=["intermediates"],
        )
        (tokens,) = applied[1]["intermediates"]["transformer"]["norm"]["__call__"]
        return tokens[:, : actions.shape[1]]

    def every(
        params: Any, batch: HostBatch, domain_ids: Sequence[int], key: Array
    ) -> Iterable[tuple[int, Array]]:
        # the observation is encoded once for all domains
        context = encode(params, batch)
        step = functools.partial(decoded, params, context, batch)
        return ((domain_id, step(jnp.int32(domain_id), key)) for domain_id in domain_ids)

    return every
