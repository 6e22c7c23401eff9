"""The flow: training loss and sampler, side by side.

t = 1 is noise and t = 0 is data: ``x_t = t * noise + (1 - t) * actions``, and the network predicts
the clean chunk. The sampler keeps one noise for all steps and builds each x_t from that noise and
the latest clean estimate; it takes no Euler steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import jax
import jax.numpy as jnp

from xvla_jax import inpainting
from xvla_jax.actions import action_space
from xvla_jax.batch import CHANNEL_MASK
from xvla_jax.inpainting import Prefix
from xvla_jax.models.xvla import XVLA, Context

Array = jax.Array
Params = Mapping[str, Any]

_TIME_WRAP: Final = 1.0 - 1e-5  # X-VLA's; times stay below 1


def stratified_time(u: Array, batch_size: int) -> Array:
    """Turns one uniform draw ``u`` in [0, 1) into times ``[B]``, one in each of B equal strata."""
    return (u + jnp.arange(batch_size, dtype=jnp.float32) / batch_size) % _TIME_WRAP


def stratified_draws(u: Array, batch_size: int, draws: int) -> Array:
    """Turns one uniform draw ``u`` into times ``[B, K]``, one in each of B * K equal strata.

    The K times of an observation are 1 / K apart, so each sees early and late times alike.
    """
    return stratified_time(u, batch_size * draws).reshape(draws, batch_size).T


def step_time(i: Array, steps: Array) -> Array:
    """Time of the sampler's step ``i`` of ``steps``: from 1 down to 1 / steps, evenly spaced.

    The one place that states the grid: inpainting takes its times from here as well.
    """
    return (steps - i).astype(jnp.float32) / steps


def interpolate(noise: Array, actions: Array, t: Array) -> Array:
    """Mixes ``noise`` and ``actions`` ``[B, T, D]`` to x_t at times ``t`` ``[B]``."""
    t = t[:, None, None]  # [B, 1, 1]
    return t * noise + (1.0 - t) * actions


def loss_terms(
    model: XVLA,
    params: Params,
    batch: Mapping[str, Array],
    *,
    noise: Array,
    t: Array,
    rng: Array | None = None,
) -> dict[str, Array]:
    """Returns the mean loss terms of a batch by name in the action space; the loss is their sum.

    The arguments are those of `sample_losses`.
    """
    losses = sample_losses(model, params, batch, noise=noise, t=t, rng=rng)
    return {name: values.mean() for name, values in losses.items()}


def sample_losses(
    model: XVLA,
    params: Params,
    batch: Mapping[str, Array],
    *,
    noise: Array,
    t: Array,
    rng: Array | None = None,
) -> dict[str, Array]:
    """Returns the loss terms of each sample, ``[B]``.

    Args:
        model: the module.
        params: its parameters.
        batch: ``pixels`` float32[B, V, H, W, 3] normalised, ``view_mask`` bool[B, V],
            ``input_ids`` int32[B, L], ``domain_id`` int32[B], ``proprio`` float32[B, D],
            ``actions`` float32[B, T, d]; ``channel_mask`` bool[B, d] where channels are lacking.
        noise: standard normal, of the shape of ``actions``; ``[B, K, T, d]`` for K draws of each
            observation, which is encoded once. The terms are then means over its draws.
        t: float32[B], see `stratified_time`; ``[B, K]``, see `stratified_draws`.
        rng: key for dropout and drop path; without it the network runs in evaluation mode.
    """
    space = action_space(model.config)
    train = rng is not None
    rngs = {"dropout": rng} if train else {}
    draws = t.size // len(t)
    # K rows for each observation, side by side: [B, K, ...] -> [B * K, ...]
    noise, t = noise.reshape(-1, *noise.shape[-2:]), t.reshape(-1)
    rows = {
        name: batch[name] if draws == 1 else jnp.repeat(batch[name], draws, axis=0)
        for name in ("actions", "proprio", CHANNEL_MASK)
        if name in batch
    }
    actions, mask = rows["actions"], rows.get(CHANNEL_MASK)
    noisy = interpolate(noise, actions, t)  # [B * K, T, d]
    # The action space pads to D and hides what is never denoised or was not recorded.
    proprio, noisy = space.preprocess(rows["proprio"], noisy, mask)
    prediction = model.apply(
        {"params": params},
        batch["pixels"],
        batch["view_mask"],
        batch["input_ids"],
        noisy,
        proprio,
        batch["domain_id"],
        t,
        train=train,
        rngs=rngs,
    )
    with jax.named_scope("loss"):
        losses = space.sample_losses(jnp.asarray(prediction), actions, mask)  # [B * K]
        if draws == 1:
            return losses
        return {name: values.reshape(-1, draws).mean(axis=1) for name, values in losses.items()}


def sample(
    model: XVLA,
    params: Params,
    context: Context,
    proprio: Array,
    domain_id: Array,
    *,
    noise: Array,
    steps: int | Array,
    prefix: Prefix | None = None,
    channel_mask: Array | None = None,
) -> Array:
    """Denoises ``noise`` float32[B, T, D] in ``steps`` >= 1 steps.

    With ``steps`` int32[B] each sample has its own number of steps, and keeps its estimate after
    the last one. With a ``prefix`` the chunk begins with its rows; one of weight 0 changes no bit.
    Channels that ``channel_mask`` bool[B, d] leaves out stay hidden from the network, as in
    training; nothing is known of their actions.

    Returns:
        float32[B, T, real width], postprocessed: gripper logits are probabilities, padding is cut.
    """
    if isinstance(steps, int) and steps < 1:
        raise ValueError(f"steps is {steps}; at least 1 is needed")
    space = action_space(model.config)
    # Once for all steps: the tokens of the observation and their part of the first block.
    prepared = model.apply({"params": params}, context, domain_id, method="prepare")
    count = jnp.broadcast_to(jnp.asarray(steps, jnp.int32), noise.shape[:1])  # [B]
    # A static bound where all samples have the same number of steps, so that work can be counted.
    most = steps if isinstance(steps, int) else jnp.max(count)

    # The carry is the latest clean estimate [B, T, D], x_t is built from it in each step.
    def step(i: Array, actions: Array) -> Array:
        t = step_time(i, count)  # [B]
        state_in, noisy = space.preprocess(proprio, interpolate(noise, actions, t), channel_mask)
        prediction = model.apply(
            {"params": params}, prepared, noisy, state_in, domain_id, t, method="denoise"
        )
        estimate = cast(Array, prediction)
        if prefix is not None:
            estimate = inpainting.guide(prefix, estimate, t, space)
        return jnp.where((i < count)[:, None, None], estimate, actions)  # done samples wait

    # Zeros stand for the first estimate, which t = 1 multiplies by zero.
    clean = jax.lax.fori_loop(0, most, step, jnp.zeros_like(noise, dtype=jnp.float32))
    chunk = space.postprocess(clean)
    if prefix is None:
        return chunk
    return inpainting.settle(prefix, chunk, step_time(count - 1, count), space)
