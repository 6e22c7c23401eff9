"""The flow: training loss and sampler, side by side.

t = 1 is noise and t = 0 is data: ``x_t = t * noise + (1 - t) * actions``, and the network predicts
the clean chunk. The sampler keeps one noise for all steps and builds each x_t from that noise and
the latest clean estimate; it takes no Euler steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, cast

import jax
import jax.numpy as jnp
from flax import struct

from xvla_jax import inpainting
from xvla_jax.actions import ActionSpace, action_space
from xvla_jax.batch import CHANNEL_MASK
from xvla_jax.inpainting import Prefix
from xvla_jax.models.xvla import XVLA, Context
from xvla_jax.plans import TimeGrid

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


def drawn_delays(key: Array, shape: tuple[int, ...], most: int) -> Array:
    """Draws delays, int32 of a shape, each of 0 .. ``most`` actions equally often."""
    return jax.random.randint(key, shape, 0, most + 1)


def interpolate(noise: Array, actions: Array, t: Array) -> Array:
    """Mixes ``noise`` and ``actions`` ``[B, T, D]`` to x_t at times ``t`` ``[B]`` or ``[B, T]``."""
    t = t[:, None, None] if t.ndim == 1 else t[..., None]  # [B, 1, 1] or [B, T, 1]
    return t * noise + (1.0 - t) * actions


def loss_terms(
    model: XVLA,
    params: Params,
    batch: Mapping[str, Array],
    *,
    noise: Array,
    t: Array,
    delay: Array | None = None,
    rng: Array | None = None,
) -> dict[str, Array]:
    """Returns the mean loss terms of a batch by name in the action space; the loss is their sum.

    The arguments are those of `sample_losses`.
    """
    losses = sample_losses(model, params, batch, noise=noise, t=t, delay=delay, rng=rng)
    return {name: values.mean() for name, values in losses.items()}


def sample_losses(
    model: XVLA,
    params: Params,
    batch: Mapping[str, Array],
    *,
    noise: Array,
    t: Array,
    delay: Array | None = None,
    rng: Array | None = None,
) -> dict[str, Array]:
    """Returns the loss terms of each sample, ``[B]``.

    Args:
        model: the module.
        params: its parameters.
        batch: ``pixels`` float32[B, V, H, W, 3] normalised, ``view_mask`` bool[B, V],
            ``input_ids`` int32[B, L], ``domain_id`` int32[B], ``proprio`` float32[B, D],
            ``actions`` float32[B, T, d], or of the shape of ``noise``; ``channel_mask`` bool[B, d]
            where channels are lacking.
        noise: standard normal ``[B, T, d]``; ``[B, K, T, d]`` for K draws of each
            observation, which is encoded once. The terms are then means over its draws.
        t: float32[B], see `stratified_time`; ``[B, K]``, see `stratified_draws`.
        delay: int32 of the shape of ``t``: so many first rows of the chunk, fewer than T, are
            committed. The network sees them as they are, at time 0, and the loss is a mean over
            the others.
        rng: key for dropout and drop path; without it the network runs in evaluation mode.
    """
    space = action_space(model.config)
    train = rng is not None
    rngs = {"dropout": rng} if train else {}
    draws = t.size // len(t)
    # K rows for each observation, side by side: [B, K, ...] -> [B * K, ...]
    noise, t = noise.reshape(-1, *noise.shape[-2:]), t.reshape(-1)

    def for_draws(value: Array) -> Array:  # [B, ...] -> [B * K, ...]
        return value if draws == 1 else jnp.repeat(value, draws, axis=0)

    actions = batch["actions"]
    actions = for_draws(actions) if actions.ndim < 4 else actions.reshape(noise.shape)
    mask = for_draws(batch[CHANNEL_MASK]) if CHANNEL_MASK in batch else None
    free = None
    if delay is not None:  # the time of each action: 0, data, in the committed rows
        free = jnp.arange(actions.shape[1]) >= delay.reshape(-1, 1)  # [B * K, T]
        t = jnp.where(free, t[:, None], 0.0)  # [B * K, T]
    noisy = interpolate(noise, actions, t)  # [B * K, T, d]
    # The action space pads to D and hides what is never denoised or was not recorded.
    proprio, noisy = space.preprocess(for_draws(batch["proprio"]), noisy, mask)
    views = [batch[name] for name in ("pixels", "view_mask", "input_ids")]
    inputs = (*views, noisy, proprio, batch["domain_id"], t)
    prediction = model.apply({"params": params}, *inputs, train=train, rngs=rngs)
    with jax.named_scope("loss"):
        losses = space.sample_losses(jnp.asarray(prediction), actions, mask, free)  # [B * K]
        if draws == 1:
            return losses
        return {name: values.reshape(-1, draws).mean(axis=1) for name, values in losses.items()}


class _State(struct.PyTreeNode):
    """Carry of the sampler's loops."""

    actions: Array  # float32[B, T, D], the latest clean estimate
    running: Array | None  # bool[B], False once a sample has stopped by itself; None: none does


@dataclasses.dataclass(frozen=True)
class _Sampler:
    """Inputs that the steps of one call of `sample` share."""

    model: XVLA
    params: Params
    proprio: Array
    domain_id: Array
    noise: Array
    grid: TimeGrid
    tolerance: Array | None
    prefix: Prefix | None
    channel_mask: Array | None

    @property
    def space(self) -> ActionSpace:
        return action_space(self.model.config)

    def run(self, method: str, tokens: Any, i: Array, actions: Array) -> Any:
        """Runs the head on x_t of step ``i``, built from the one noise and the estimate."""
        t = inpainting.row_times(self.prefix, self.grid.time(i))  # [B] or [B, T]
        noisy = interpolate(self.noise, actions, t)
        state_in, noisy = self.space.preprocess(self.proprio, noisy, self.channel_mask)
        inputs = (tokens, noisy, state_in, self.domain_id, t)
        return self.model.apply({"params": self.params}, *inputs, method=method)

    def taken(self, i: Array, before: _State, estimate: Array) -> _State:
        """Returns the state after step ``i``; samples that are done wait."""
        if self.prefix is not None:
            estimate = inpainting.guide(self.prefix, estimate, self.grid.time(i), self.space)
        runs = self.grid.runs(i)  # [B]
        if before.running is not None:
            runs &= before.running
        actions = jnp.where(runs[:, None, None], estimate, before.actions)
        if self.tolerance is None:
            return _State(actions, None)
        near = self._movement(before.actions, actions) < self.tolerance
        return _State(actions, runs & ~(near & (i > 0)))  # the first estimate has none before it

    def loop(self, start: int, stop: int | Array, tokens: Any, state: _State) -> _State:
        """Takes the steps from ``start`` to ``stop`` with one context."""

        def step(i: Array, state: _State) -> _State:
            return self.taken(i, state, self.run("denoise", tokens, i, state.actions))

        if self.tolerance is None:
            return jax.lax.fori_loop(start, stop, step, state)
        _, state = jax.lax.while_loop(
            lambda carry: (carry[0] < stop) & jnp.any(cast(Array, carry[1].running)),
            lambda carry: (carry[0] + 1, step(*carry)),
            (jnp.int32(start), state),
        )
        return state

    def _movement(self, before: Array, after: Array) -> Array:
        """Returns the largest change ``[B]`` of channels that the network sees again."""
        moved = jnp.abs(after - before)  # [B, T, D]
        return self.space.preprocess(moved[:, 0], moved, self.channel_mask)[1].max((1, 2))


def sample(
    model: XVLA,
    params: Params,
    context: Context,
    proprio: Array,
    domain_id: Array,
    *,
    noise: Array,
    steps: int | Array,
    refresh: tuple[int, ...] | None = None,
    tolerance: Array | None = None,
    prefix: Prefix | None = None,
    channel_mask: Array | None = None,
) -> Array:
    """Denoises ``noise`` float32[B, T, D] in ``steps`` >= 1 steps.

    With ``steps`` int32[B] each sample has its own number of steps, and keeps its estimate after
    the last one. With a ``prefix`` the chunk begins with its rows; one of weight 0 changes no bit.
    Its clean rows are shown to the network as they are, at time 0, by which weights that were
    trained for delays know them.
    Channels that ``channel_mask`` bool[B, d] leaves out stay hidden from the network, as in
    training; nothing is known of their actions.

    ``refresh`` and ``tolerance`` are those of `plans.SamplerPlan`. The former needs a model with
    ``unroll``; of the latter each sample has its own, float32[B], and 0 changes no bit.

    Returns:
        float32[B, T, real width], postprocessed: gripper logits are probabilities, padding is cut.
    """
    grid = TimeGrid.of(steps, len(noise))
    sampler = _Sampler(
        model, params, proprio, domain_id, noise, grid, tolerance, prefix, channel_mask
    )
    # Once for all steps: the tokens of the observation and their part of the first block.
    prepared = model.apply({"params": params}, context, domain_id, method="prepare")
    # Zeros stand for the first estimate, which t = 1 multiplies by zero.
    zeros = jnp.zeros_like(noise, dtype=jnp.float32)
    state = _State(
        inpainting.begin(prefix, zeros, sampler.space),
        None if tolerance is None else jnp.ones(len(noise), bool),
    )
    if refresh is None:
        state = sampler.loop(0, grid.most, prepared, state)
    for start, stop in _spans(refresh or (), grid.most):
        # One step over all tokens, then those that see the context as it was in that step.
        i = jnp.int32(start)
        estimate, kept = sampler.run("keep", prepared, i, state.actions)
        state = sampler.loop(start + 1, stop, kept, sampler.taken(i, state, estimate))
    chunk = sampler.space.postprocess(state.actions)
    if prefix is None:
        return chunk
    return inpainting.settle(prefix, chunk, grid.last, sampler.space)


def _spans(refresh: tuple[int, ...], most: int | Array) -> list[tuple[int, int | Array]]:
    """Returns (step that computes the context, end of the steps that use it) for each of them."""
    if isinstance(most, int):
        refresh = tuple(start for start in refresh if start < most)
    return list(zip(refresh, (*refresh[1:], most), strict=False))
