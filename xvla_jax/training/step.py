"""One train step, from top to bottom: random numbers, loss, gradient, metrics, update.

All randomness of a step is a function of (seed, step): noise, flow time, delay, dropout. Nothing
depends on the number of hosts or devices. The factors of colour jitter come with the batch, for
they belong to its samples; `augment` has the arithmetic of pixels.
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
from xvla_jax.models.packing import packing_of
from xvla_jax.processor import Processor
from xvla_jax.training.augment import jittered
from xvla_jax.training.groups import join, label_tree, split
from xvla_jax.training.optimizer import learning_rates
from xvla_jax.training.state import Recipe, TrainState

Array = jax.Array
Arrays = Mapping[str, Array]
Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Arrays], tuple[TrainState, Metrics]]
_DRAWN: Final = ("noise", "t", "delay")
Loss = Callable[[Any, Arrays, Array], tuple[Array, Metrics]]  # parameters, batch, dropout key


def make_train_step(recipe: Recipe, processor: Processor, *, seed: int) -> TrainStep:
    """Returns the jitted step ``(state, batch) -> (state, metrics)``; the state is donated.

    Where the loss or a gradient is not finite, parameters and moments stay as they are.

    Metrics: the loss terms, ``loss``, ``grad_norm`` (before clipping), ``finite``; by group
    ``grad_norm/NAME`` and ``learning_rate/NAME``; by domain ``domain_loss`` and ``domain_samples``,
    both ``[num_domains]``. Where views are packed, ``packed_unused`` (share of the places without
    an image) and ``packed_overflow`` (share of the parts that needed the second pass).
    """

    def train_step(state: TrainState, batch: Arrays) -> tuple[TrainState, Metrics]:
        # The step's number is folded into the key, so a resumed run draws what it would have drawn.
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        noise_key, time_key, dropout_key = jax.random.split(key, 3)
        drawn = _drawn(noise_key, time_key, batch["actions"].shape, recipe.noise_draws)
        if longest := recipe.model.config.rtc_max_delay:
            delay_key = jax.random.fold_in(key, 3)  # the next one behind the three
            drawn["delay"] = flow.drawn_delays(delay_key, drawn["t"].shape, longest)

        # Only what trains is differentiated: frozen parameters get no gradients and no moments.
        trained, frozen = split(state.params, recipe.groups)
        # An adapter is merged once for all parts of the batch, and not differentiated here.
        merged = recipe.merged(state.params, state.base)
        loss = _make_loss(recipe, processor, frozen, merged, state.teacher)
        terms, grads = _gradients(loss, trained, {**batch, **drawn}, dropout_key, recipe.accumulate)

        sample_loss = sum(terms.values(), start=jnp.zeros(()))  # [B]
        metrics = {name: values.mean() for name, values in terms.items()}
        metrics |= {"loss": sample_loss.mean()} | _by_group(grads, state.step, recipe)
        metrics |= _by_domain(sample_loss, batch["domain_id"], recipe.model.config.num_domains)
        metrics |= _by_packing(batch, recipe)

        # A flag on the device instead of an exception: the host reads it some steps later.
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        with jax.named_scope("optimizer"):
            new_state = _update(state, trained, frozen, grads, metrics["grad_norm"], finite, recipe)
        return new_state, metrics | {"finite": finite}

    # The old state is donated: the new one takes its place in memory.
    return jax.jit(train_step, donate_argnums=0, compiler_options=COMPILER_OPTIONS)


def _drawn(
    noise_key: Array, time_key: Array, shape: tuple[int, ...], draws: int
) -> dict[str, Array]:
    """Returns noise and times for actions of a shape ``[B, T, D]``; several draws are axis 1."""
    size = shape[0]
    if draws > 1:
        shape = (size, draws, *shape[1:])  # [B, K, T, D]
    noise = jax.random.normal(noise_key, shape, jnp.float32)
    u = jax.random.uniform(time_key)  # one for the step: its times are spread evenly
    if draws > 1:
        return {"noise": noise, "t": flow.stratified_draws(u, size, draws)}  # t [B, K]
    return {"noise": noise, "t": flow.stratified_time(u, size)}  # t [B]


def _make_loss(
    recipe: Recipe, processor: Processor, frozen: Any, merged: Any, teacher: Any
) -> Loss:
    """Returns the loss of a part of a batch, a function of the parameters that train.

    Args:
        recipe: of the run.
        processor: mean and deviation of the images.
        frozen: parameters that do not train.
        merged: the model's parameters with the adapter, see `Recipe.merged`.
        teacher: parameters of the teacher, where the recipe has one.
    """

    def loss(trained: Any, part: Arrays, key: Array) -> tuple[Array, Metrics]:
        drawn = {name: part[name] for name in _DRAWN if name in part}
        inputs = {k: v for k, v in part.items() if k not in (*IMAGE_FIELDS, *_DRAWN)}
        # Images arrive as uint8, a quarter of float32's traffic, and become floats here.
        with jax.named_scope("images"):
            inputs["pixels"] = normalise(_augmented(part), processor.mean, processor.std)
        weights = recipe.weights(join(trained, frozen), merged)
        chances: dict[str, Any] = {**drawn, "rng": key}
        if recipe.distill is not None:
            with jax.named_scope("teacher"):
                inputs["actions"] = recipe.distill.targets(teacher, inputs, drawn["noise"])
            # Without dropout: the target is a function of what the student sees.
            chances |= {"t": recipe.distill.times(drawn["t"]), "rng": None}
        terms = flow.sample_losses(recipe.model, weights, inputs, **chances)
        return sum(terms.values(), start=jnp.zeros(())).mean(), terms

    return loss


def _gradients(
    loss: Loss, trained: Any, batch: Arrays, key: Array, parts: int
) -> tuple[Metrics, Any]:
    """Returns the terms of each sample, and gradients of the mean loss.

    The batch is cut into ``parts`` that follow one another: activations of one part are in memory.
    """
    grad = jax.grad(loss, has_aux=True)
    if parts == 1:
        grads, terms = grad(trained, batch, key)
        return terms, grads
    size = len(batch["actions"])
    if size % parts:
        raise ConfigError(f"config.accumulate {parts} does not divide config.batch_size {size}")

    def cut(x: Array) -> Array:
        # Every part takes rows from the entire batch, so each device keeps its own rows:
        # [B, ...] -> [B / parts, parts, ...] -> [parts, B / parts, ...]
        return x.reshape(size // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Any, number_and_part: tuple[Array, Any]) -> tuple[Any, Metrics]:
        number, part = number_and_part
        grads, terms = grad(trained, part, jax.random.fold_in(key, number))
        return jax.tree.map(lambda a, b: a + b / parts, total, grads), terms

    zeros = jax.tree.map(jnp.zeros_like, trained)
    stacked = (jnp.arange(parts), {name: cut(value) for name, value in batch.items()})
    grads, terms = jax.lax.scan(add, zeros, stacked)
    # back to the order of rows: [parts, B / parts] -> [B / parts, parts] -> [B]
    return {name: value.swapaxes(0, 1).reshape(size) for name, value in terms.items()}, grads


def _update(
    state: TrainState,
    trained: Any,
    frozen: Any,
    grads: Any,
    norm: Array,
    finite: Array,
    recipe: Recipe,
) -> TrainState:
    """Returns the next state; where a step is not finite, only its counters change."""
    # Both scalars are passed on: computed again, they would keep the squared gradients alive.
    changes, opt_state = recipe.optimizer.update(
        grads, state.opt_state, trained, norm=norm, finite=finite
    )
    trained = jax.tree.map(
        lambda old, change: jnp.where(finite, old + change, old), trained, changes
    )
    # The average follows the new parameters, so it comes after them.
    decay, ema = recipe.ema_decay, state.ema
    if decay:
        ema = jax.tree.map(
            lambda old, new: jnp.where(finite, decay * old + (1.0 - decay) * new, old),
            ema,
            trained,
        )
    params, skipped = join(trained, frozen), state.skipped + (~finite).astype(jnp.int32)
    return state.replace(
        step=state.step + 1, params=params, opt_state=opt_state, ema=ema, skipped=skipped
    )


def _by_group(grads: Any, step: Array, recipe: Recipe) -> Metrics:
    """Returns gradient norms before clipping, of all and by group, and learning rates by group."""
    squares: dict[str, Array] = {}
    labels = label_tree(grads, recipe.groups)
    for leaf, label in zip(jax.tree.leaves(grads), jax.tree.leaves(labels), strict=True):
        # The layers of a scanned tower may be in different groups; other leaves have one row.
        rows = leaf.reshape(len(label.groups), -1)  # [layers or 1, numbers of a layer]
        for group, square in zip(label.groups, jnp.square(rows).sum(axis=1), strict=True):
            squares[group.name] = squares.get(group.name, jnp.zeros(())) + square
    rates = learning_rates(step, recipe.config, recipe.groups)
    total = jnp.sqrt(sum(squares.values(), start=jnp.zeros(())))
    norms = {f"grad_norm/{name}": jnp.sqrt(square) for name, square in squares.items()}
    return {"grad_norm": total, **norms} | {
        f"learning_rate/{name}": rates[name] for name in squares
    }


def _by_domain(losses: Array, domain_id: Array, num_domains: int) -> Metrics:
    """Returns mean loss (0 without samples) and number of samples of each domain."""
    member = jax.nn.one_hot(domain_id, num_domains, dtype=jnp.float32)  # [B, num_domains]
    count = member.sum(axis=0)  # [num_domains]
    # In a plain product a sample that is not finite would make every domain NaN.
    total = jnp.where(member > 0, losses[:, None], 0.0).sum(axis=0)
    return {"domain_loss": total / jnp.maximum(count, 1.0), "domain_samples": count}


def _by_packing(batch: Arrays, recipe: Recipe) -> Metrics:
    """Returns how the views of a batch were packed; nothing where they were not."""
    shown, parts = batch["images"].shape[1], recipe.accumulate
    masks = [batch["view_mask"][part::parts, :shown] for part in range(parts)]  # as they are cut
    packings = [packing_of(mask, recipe.model.packed_views) for mask in masks]
    packed = [packing for packing in packings if packing is not None]
    if not packed:  # known when the step is traced
        return {}
    return {
        "packed_unused": jnp.stack([packing.unused for packing in packed]).mean(),
        "packed_overflow": jnp.stack([packing.overflow for packing in packed]).mean(),
    }


def _augmented(batch: Arrays) -> Array:
    """Returns the images of a batch, jittered if it has the jitter fields."""
    if "jitter" not in batch:  # known when the step is traced
        return batch["images"]
    return jittered(batch["images"], batch["jitter"], batch["jitter_order"])
