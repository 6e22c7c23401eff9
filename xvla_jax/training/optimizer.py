"""AdamW by groups of parameters (groups.py), and schedules as named functions of the step.

Written here instead of chained from optax's parts, because a step that is not finite must leave the
moments as they are, and because gradients, moments and updates of 0.9 B parameters must not be in
memory more often than needed. `make_optimizer` at the end puts the parts together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError
from xvla_jax.training.groups import (
    ALWAYS,
    AT_FIRST,
    Group,
    Groups,
    Label,
    group_sizes,
    label_tree,
    mode_groups,
)

Array = jax.Array
_ALL_STEPS, _SOME_STEPS = 2**20, 2**12  # looked at, of a run up to so long and of a longer one


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """X-VLA's trainer flags, under their names."""

    schedule: str
    iters: int
    mode: str = "xvla"  # a name in groups.MODES
    learning_rate: float = 1e-4
    # Factor of the groups vlm and soft_prompts; the authors advise 0.1 with pretrained weights.
    learning_coef: float = 1.0
    last_layers: int = 4  # blocks that train in mode last_layers
    freeze_steps: int = 1000
    warmup_steps: int = 2000
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    max_grad_norm: float = 1.0  # 0 turns clipping off
    use_cosine_decay: bool = False  # of the schedule xvla_flags

    def groups(self, model: XVLAConfig) -> Groups:
        """Returns the groups of the mode for a model."""
        return mode_groups(
            self.mode, model, learning_coef=self.learning_coef, last_layers=self.last_layers
        )


def _cosine(step: Array, length: int, floor: float) -> Array:
    """Returns a half cosine from 1 at step 0 to ``floor`` at ``length``, and after it."""
    progress = jnp.clip(step / max(length, 1), 0.0, 1.0)
    return floor + (1.0 - floor) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))


def _xvla_release(step: Array, waits: bool, c: OptimizerConfig) -> Array:
    """Released trainer without its cosine flag.

    Groups jump to their rate after the freeze; no warm-up.
    """
    return jnp.where((step < c.freeze_steps) & waits, 0.0, 1.0)


def _xvla_cosine(step: Array, waits: bool, c: OptimizerConfig) -> Array:
    """Released trainer with its cosine flag.

    After the freeze every group restarts from 0, those that trained too.
    """
    after = step - c.freeze_steps
    ramp = after / max(c.warmup_steps, 1)
    decay = _cosine(
        after - c.warmup_steps, c.iters - c.freeze_steps - c.warmup_steps, c.min_lr_ratio
    )
    frozen = 0.0 if waits else 1.0
    return jnp.where(after < 0, frozen, jnp.where(after < c.warmup_steps, ramp, decay))


def _xvla_flags(step: Array, waits: bool, c: OptimizerConfig) -> Array:
    """The released trainer, whose flag use_cosine_decay chooses between the two above."""
    return (_xvla_cosine if c.use_cosine_decay else _xvla_release)(step, waits, c)


def _xvla_early(step: Array, waits: bool, c: OptimizerConfig) -> Array:
    """The authors' early fine-tuning script.

    Waiting groups warm up linearly after the freeze; in every other step a rate shrinks by 1e-5.
    """
    ramp = jnp.clip((step - c.freeze_steps) / max(c.warmup_steps, 1), 0.0, 1.0)
    shrinking = step - (c.freeze_steps + c.warmup_steps if waits else 0)
    shrunk = 0.99999 ** jnp.maximum(shrinking, 0)
    return jnp.where(waits, ramp, 1.0) * shrunk


def _constant(step: Array, waits: bool, c: OptimizerConfig) -> Array:
    """The pretraining of the paper: one rate for all, from the first step on."""
    del waits, c
    return jnp.ones_like(step, jnp.float32)


def _xvla_paper(step: Array, waits: bool, c: OptimizerConfig) -> Array:
    """The paper's schedule.

    Waiting groups warm up linearly after the freeze; prompts and heads keep their rate.
    """
    ramp = jnp.clip((step - c.freeze_steps) / max(c.warmup_steps, 1), 0.0, 1.0)
    return jnp.where(waits, ramp, 1.0)


def _warmup_cosine(step: Array, waits: bool, c: OptimizerConfig) -> Array:
    """Training from scratch: every group warms up, then decays by a cosine to ``min_lr_ratio``."""
    frozen = (step < c.freeze_steps) & waits
    ramp = (step + 1) / max(c.warmup_steps, 1)
    decay = _cosine(step - c.warmup_steps, c.iters - c.warmup_steps, c.min_lr_ratio)
    return jnp.where(frozen, 0.0, jnp.where(step < c.warmup_steps, ramp, decay))


# Each takes (step, the group waits for the end of the freeze, config) and returns the factor of the
# group's rate. A new schedule is a function above and a row here.
SCHEDULES: Final[Mapping[str, Callable[[Array, bool, OptimizerConfig], Array]]] = {
    "xvla_release": _xvla_release,
    "xvla_cosine": _xvla_cosine,
    "xvla_flags": _xvla_flags,
    "xvla_early": _xvla_early,
    "xvla_paper": _xvla_paper,
    "constant": _constant,
    "warmup_cosine": _warmup_cosine,
}


def learning_rates(
    step: Array | np.ndarray | int, config: OptimizerConfig, groups: Groups
) -> dict[str, Array]:
    """Returns the learning rate of each group at ``step`` (from 0), or at each of several."""
    if config.schedule not in SCHEDULES:
        raise ConfigError(
            f"config.optimizer.schedule is {config.schedule!r}; known are {', '.join(SCHEDULES)}"
        )
    schedule, step = SCHEDULES[config.schedule], jnp.asarray(step)
    return {
        g.name: config.learning_rate * g.factor * schedule(step, g.frozen == AT_FIRST, config)
        if g.frozen != ALWAYS
        else jnp.zeros(())
        for g in groups
    }


@dataclasses.dataclass(frozen=True)
class GroupRow:
    """Size, rate and freeze of a group in a run.

    Attributes:
        name: of the group.
        parameters: how many there are.
        learning_rate: the highest of the run.
        frozen_until: first step that may change them; None if none does.
    """

    name: str
    parameters: int
    learning_rate: float
    frozen_until: int | None


def group_rows(params: Any, config: OptimizerConfig, groups: Groups) -> list[GroupRow]:
    """Returns a row for each group; works on shapes.

    Raises:
        ConfigError: a parameter that no group covers.
    """
    # Many steps of the run at once: the highest rate depends on the schedule.
    rates = learning_rates(_some_steps(config), config, groups)
    sizes = group_sizes(params, groups)

    def frozen_until(group: Group) -> int | None:
        if group.frozen == ALWAYS:
            return None
        # some schedules freeze no group
        waits = group.frozen == AT_FIRST and not np.ravel(rates[group.name])[0]
        return config.freeze_steps if waits else 0

    return [
        GroupRow(g.name, sizes[g.name], float(np.max(rates[g.name])), frozen_until(g))
        for g in groups
    ]


def _some_steps(config: OptimizerConfig) -> np.ndarray:
    """Returns all steps of a run; of a very long one some, with those where a rate may turn."""
    last = config.iters - 1
    if last < _ALL_STEPS:
        return np.arange(config.iters)
    freeze, warmup = config.freeze_steps, config.warmup_steps
    turns = [start + n for start in (0, freeze, warmup, freeze + warmup) for n in (-1, 0, 1)]
    steps = np.concatenate([np.linspace(0, last, _SOME_STEPS).astype(np.int64), turns])
    return np.unique(steps.clip(0, last))


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Returns a transformation that scales gradients to a norm of at most ``max_norm``; 0: none.

    ``update`` takes ``norm``, that of all gradients, as an extra argument: the metrics have it, and
    a second computation would keep the squares of all gradients in memory.

    Source: Pascanu et al. 2012, arXiv 1211.5063.
    """

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        if not max_norm:
            return updates, state
        # a product with a scalar is cheap enough for XLA to repeat it in each of its readers
        factor = max_norm / jnp.maximum(extra["norm"], max_norm)
        return jax.tree.map(lambda gradient: gradient * factor, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """Returns Adam's direction; the moments stay as they are where ``finite`` is False.

    ``update`` takes ``finite``, a bool scalar, as an extra argument. Where it is False the updates
    are meaningless, and the caller must keep the parameters.

    Source: Kingma and Ba 2015, arXiv 1412.6980.
    """

    # optax's own state type: checkpoints have its names, count, mu and nu.
    def init(params: Any) -> optax.ScaleByAdamState:
        return optax.ScaleByAdamState(
            count=jnp.zeros([], jnp.int32),
            mu=optax.tree.zeros_like(params),
            nu=optax.tree.zeros_like(params),
        )

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, optax.ScaleByAdamState]:
        del params
        finite: Array = extra["finite"]
        count = state.count + finite.astype(jnp.int32)

        def moments(gradient: Array, mu: Array, nu: Array) -> tuple[Array, Array]:
            first = jnp.where(finite, b1 * mu + (1 - b1) * gradient, mu)
            second = jnp.where(finite, b2 * nu + (1 - b2) * jnp.square(gradient), nu)
            # Behind the barrier, new moments are read from memory: recomputed from the old ones,
            # they would keep those alive, and donated buffers could not be overwritten.
            return jax.lax.optimization_barrier((first, second))

        # A tree of pairs -> a pair of trees
        pairs = jax.tree.map(moments, updates, state.mu, state.nu)
        mu, nu = jax.tree.transpose(jax.tree.structure(updates), jax.tree.structure((0, 0)), pairs)
        seen = jnp.maximum(count, 1).astype(jnp.float32)  # 0 only where nothing was finite yet
        correct1, correct2 = 1 - b1**seen, 1 - b2**seen
        directions = jax.tree.map(
            lambda m, v: (m / correct1) / (jnp.sqrt(v / correct2) + eps), mu, nu
        )
        return directions, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformationExtraArgs(init, update)


def _per_layer(label: Label, values: Mapping[str, Any], ndim: int) -> Any:
    """Returns the value of a leaf's group, or of each layer, shaped to broadcast."""
    by_layer = [values[group.name] for group in label.groups]
    if len(by_layer) == 1:
        return by_layer[0]
    # [layers, 1, ...], against leaves [layers, ...]
    return jnp.stack([jnp.asarray(value) for value in by_layer]).reshape(-1, *(1,) * (ndim - 1))


class _GroupRateState(NamedTuple):
    count: Array  # int32, steps taken


def _scale_by_group(
    config: OptimizerConfig, groups: Groups
) -> optax.GradientTransformationExtraArgs:
    """Returns a transformation: adds weight decay, multiplies by the rate, both by group."""
    # plain numbers: arrays made outside would be hoisted out of every step that uses them
    decays = {g.name: config.weight_decay * g.decay for g in groups}

    def init(params: Any) -> _GroupRateState:
        # A parameter that no group covers is refused here, not in the first step.
        label_tree(params, groups)
        return _GroupRateState(jnp.zeros([], jnp.int32))

    def update(
        updates: Any, state: Any, params: Any = None, **extra: Any
    ) -> tuple[Any, _GroupRateState]:
        # A step that is not finite is not counted, so it moves no schedule either.
        rates = learning_rates(state.count, config, groups)

        def scale(label: Label, change: Array, value: Array) -> Array:
            # Decoupled: decay is added behind Adam, and scaled by the rate like the direction.
            decayed = change + _per_layer(label, decays, value.ndim) * value
            return -_per_layer(label, rates, value.ndim) * decayed

        labels = label_tree(updates, groups)
        count = state.count + extra["finite"].astype(jnp.int32)
        return jax.tree.map(scale, labels, updates, params), _GroupRateState(count)

    return optax.GradientTransformationExtraArgs(init, update)


def make_optimizer(
    config: OptimizerConfig, groups: Groups
) -> optax.GradientTransformationExtraArgs:
    """Returns clipping by global norm, Adam, decoupled weight decay, learning rate by group.

    It is for the parameters that train (`groups.split`). Every update needs them, ``norm`` of all
    gradients, and ``finite``, a bool scalar. Where that is False the state stays as it is, and the
    updates must not be applied.
    """
    # Clipping comes first: Adam's moments see clipped gradients, as in X-VLA's trainer.
    return optax.chain(
        clip_by_global_norm(config.max_grad_norm),
        scale_by_adam(config.betas[0], config.betas[1], config.eps),
        _scale_by_group(config, groups),
    )
