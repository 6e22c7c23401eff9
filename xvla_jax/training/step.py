"""The jitted train step.

All randomness of a step is a function of (seed, step): noise, flow time, dropout. Nothing depends
on the number of hosts or devices. What colour jitter does to a picture comes with the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp

from xvla_jax import flow
from xvla_jax.batch import IMAGE_FIELDS, normalise
from xvla_jax.errors import ConfigError
from xvla_jax.models.kernels import COMPILER_OPTIONS
from xvla_jax.processor import Processor
from xvla_jax.training.groups import join, label_tree, split
from xvla_jax.training.optimizer import learning_rates
from xvla_jax.training.state import Recipe, TrainState

Array = jax.Array

_LOW_BITS: Final = 12  # of the 24 significant bits of a float32
_LUMA: Final = (19595, 38470, 7471)  # ITU-R 601 times 2**16, as Pillow converts to "L"


def jittered(images: Array, factors: Array, order: Array) -> Array:
    """The pictures, jittered; a picture whose factors are 1 comes back as it is.

    Args:
        images: uint8[B, V, H, W, 3] RGB, H * W at most 2**23 (sums are of 32 bits).
        factors: float32[B, V, 3] of brightness, contrast and saturation, finite and above 0.
        order: int32[B, V, 3], which operation comes first, second and third.

    Returns:
        uint8[B, V, H, W, 3].
    """
    # a channel at a time: the intermediates then fuse, and need a fifth of the memory
    channels = [images[..., c] for c in range(3)]
    for place in range(3):
        which = order[..., place, None]
        factor = jnp.take_along_axis(factors, which, axis=-1)
        grey = _grey(channels)
        mean = _rounded_mean(grey)
        kind = which[..., None]
        base = jnp.select([kind == 0, kind == 1], [jnp.zeros_like(grey), mean], grey)
        channels = [blend(base, channel, factor[..., None]) for channel in channels]
    return jnp.stack(channels, axis=-1)


def _grey(channels: list[Array]) -> Array:
    """int32[B, V, H, W] from red, green and blue."""
    luma = sum((w * c.astype(jnp.int32) for w, c in zip(_LUMA, channels, strict=True)), start=2**15)
    return jnp.asarray(luma) >> 16


def _rounded_mean(grey: Array) -> Array:
    """int32[B, V, 1, 1], the mean rounded half up."""
    count = grey.shape[-2] * grey.shape[-1]
    total = grey.sum(axis=(-2, -1), keepdims=True)
    whole = total // count
    return whole + (2 * (total - whole * count) >= count)


def blend(base: Array, channel: Array, factor: Array) -> Array:
    """uint8 ``base + factor * (channel - base)``, rounded as Pillow's ``Image.blend`` rounds.

    Args:
        base: whole numbers in 0 .. 255, of any type.
        channel: likewise.
        factor: float32; all three broadcast.
    """
    bits = jax.lax.bitcast_convert_type(factor, jnp.int32)
    high = jax.lax.bitcast_convert_type(bits & -(2**_LOW_BITS), jnp.float32)
    start = base.astype(jnp.float32)
    difference = channel.astype(jnp.float32) - start
    product = high * difference + (factor - high) * difference
    return jnp.clip(start + product, 0.0, 255.0).astype(jnp.uint8)


Metrics = dict[str, Array]


def make_train_step(
    recipe: Recipe, processor: Processor, *, seed: int
) -> Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, Metrics]]:
    """The jitted step ``(state, batch) -> (state, metrics)``; the state is donated.

    Where the loss or a gradient is not finite, parameters and moments stay as they are.

    Metrics: the loss terms, ``loss``, ``grad_norm`` (before clipping), ``finite``; by group
    ``grad_norm/NAME`` and ``learning_rate/NAME``; by domain ``domain_loss`` and ``domain_samples``,
    both ``[num_domains]``.
    """

    def train_step(state: TrainState, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        noise_key, time_key, dropout_key = jax.random.split(
            jax.random.fold_in(jax.random.key(seed), state.step), 3
        )
        actions = batch["actions"]
        drawn = {
            "noise": jax.random.normal(noise_key, actions.shape, jnp.float32),
            "t": flow.stratified_time(jax.random.uniform(time_key), actions.shape[0]),
        }
        learning, frozen = split(state.params, recipe.groups)

        def loss(learning: Any, part: Mapping[str, Array], key: Array) -> tuple[Array, Metrics]:
            inputs = {k: v for k, v in part.items() if k not in (*IMAGE_FIELDS, *drawn)}
            inputs["pixels"] = normalise(_augmented(part), processor.mean, processor.std)
            weights = recipe.weights(join(learning, frozen), state.base)
            terms = flow.sample_losses(
                recipe.model, weights, inputs, **{k: part[k] for k in drawn}, rng=key
            )
            return sum(terms.values(), start=jnp.zeros(())).mean(), terms

        terms, grads = _gradients(
            loss, learning, {**batch, **drawn}, dropout_key, recipe.accumulate
        )
        total = sum(terms.values(), start=jnp.zeros(()))
        metrics = {name: values.mean() for name, values in terms.items()}
        metrics |= {"loss": total.mean()} | _by_group(grads, state.step, recipe)
        metrics |= _by_domain(total, batch["domain_id"], recipe.model.config.num_domains)
        norm = metrics["grad_norm"]
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        updates, opt_state = recipe.optimizer.update(
            grads, state.opt_state, learning, norm=norm, finite=finite
        )
        new = _updated(state, learning, frozen, updates, finite, recipe)
        skipped = state.skipped + (~finite).astype(jnp.int32)
        new = new.replace(step=state.step + 1, opt_state=opt_state, skipped=skipped)
        return new, metrics | {"finite": finite}

    return jax.jit(train_step, donate_argnums=0, compiler_options=COMPILER_OPTIONS)


def _augmented(batch: Mapping[str, Array]) -> Array:
    """The images of a batch, jittered where it says how."""
    if "jitter" not in batch:  # known when the step is traced
        return batch["images"]
    return jittered(batch["images"], batch["jitter"], batch["jitter_order"])


def _gradients(
    loss: Callable[..., tuple[Array, Metrics]],
    learning: Any,
    batch: Mapping[str, Array],
    key: Array,
    parts: int,
) -> tuple[Metrics, Any]:
    """Terms of each sample, and gradients of the mean loss, with the batch cut into parts."""
    grad = jax.grad(loss, has_aux=True)
    if parts == 1:
        grads, terms = grad(learning, batch, key)
        return terms, grads
    size = len(batch["actions"])
    if size % parts:
        raise ConfigError(f"config.accumulate {parts} does not divide config.batch_size {size}")

    def cut(x: Array) -> Array:
        # every part takes from every stretch of rows, so each device keeps its own rows
        return x.reshape(size // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Any, number_and_part: tuple[Array, Any]) -> tuple[Any, Metrics]:
        number, part = number_and_part
        grads, terms = grad(learning, part, jax.random.fold_in(key, number))
        return jax.tree.map(lambda a, b: a + b / parts, total, grads), terms

    zeros = jax.tree.map(jnp.zeros_like, learning)
    stacked = (jnp.arange(parts), {name: cut(value) for name, value in batch.items()})
    grads, terms = jax.lax.scan(add, zeros, stacked)
    return {name: value.swapaxes(0, 1).reshape(size) for name, value in terms.items()}, grads


def _updated(
    state: TrainState, learning: Any, frozen: Any, updates: Any, finite: Array, recipe: Recipe
) -> TrainState:
    """The state with new parameters and their average; as it was where a step is not finite."""
    learning = jax.tree.map(
        lambda old, change: jnp.where(finite, old + change, old), learning, updates
    )
    decay = recipe.ema_decay
    ema = state.ema
    if decay:
        ema = jax.tree.map(
            lambda old, new: jnp.where(finite, decay * old + (1.0 - decay) * new, old),
            ema,
            learning,
        )
    return state.replace(params=join(learning, frozen), ema=ema)


def _by_group(grads: Any, step: Array, recipe: Recipe) -> Metrics:
    """Gradient norm of all and of each group that learns, before clipping; learning rates."""
    squares: dict[str, Array] = {}
    labels = label_tree(grads, recipe.groups)
    for leaf, label in zip(jax.tree.leaves(grads), jax.tree.leaves(labels), strict=True):
        layers = leaf.reshape(len(label.groups), -1)
        for group, square in zip(label.groups, jnp.square(layers).sum(axis=1), strict=True):
            squares[group.name] = squares.get(group.name, jnp.zeros(())) + square
    rates = learning_rates(step, recipe.config, recipe.groups)
    total = jnp.sqrt(sum(squares.values(), start=jnp.zeros(())))
    norms = {f"grad_norm/{name}": jnp.sqrt(square) for name, square in squares.items()}
    return {"grad_norm": total, **norms} | {
        f"learning_rate/{name}": rates[name] for name in squares
    }


def _by_domain(losses: Array, domain_id: Array, num_domains: int) -> Metrics:
    """Mean loss of the samples of each domain (0 where there are none), and how many there are."""
    member = jax.nn.one_hot(domain_id, num_domains, dtype=jnp.float32)  # [B, num_domains]
    count = member.sum(axis=0)
    # a sample that is not finite would make every domain NaN in a plain product
    total = jnp.where(member > 0, losses[:, None], 0.0).sum(axis=0)
    return {"domain_loss": total / jnp.maximum(count, 1.0), "domain_samples": count}
