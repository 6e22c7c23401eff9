"""AdamW with groups by parameter path, as in X-VLA's trainer.

A group is a row: path regex, learning-rate factor, whether it waits for the end of the freeze
phase. Schedules are named functions of the step. As in X-VLA's trainer a waiting group has learning
rate 0, but its gradients are counted in the clipping norm and fill Adam's moments.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import optax

from xvla_jax.errors import ConfigError
from xvla_jax.sharding import path_of

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters whose path matches ``pattern``; the first matching row of a table wins."""

    name: str
    pattern: str
    factor: float  # of the base learning rate
    waits: bool  # learning rate 0 until ``freeze_steps``


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """X-VLA's trainer flags, under their names."""

    schedule: str
    iters: int
    learning_rate: float = 1e-4
    # Factor of the groups vlm and soft_prompts; the authors advise 0.1 with pretrained weights.
    learning_coef: float = 1.0
    freeze_steps: int = 1000
    warmup_steps: int = 2000
    min_lr_ratio: float = 0.1
    weight_decay: float = 0.0  # on every parameter
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    max_grad_norm: float = 1.0  # 0 turns clipping off


def xvla_groups(learning_coef: float) -> tuple[Group, ...]:
    """The four groups of X-VLA's trainer."""
    return (
        Group("vlm", r"^vlm/", learning_coef, waits=True),
        Group("soft_prompts", r"^transformer/soft_prompts$", learning_coef, waits=False),
        Group("action_heads", r"^transformer/action_(encoder|decoder)/", 1.0, waits=False),
        Group("transformer_core", r"^transformer/", 1.0, waits=True),
    )


def _cosine(step: Array, length: int, floor: float) -> Array:
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


SCHEDULES: Final[Mapping[str, Callable[[Array, bool, OptimizerConfig], Array]]] = {
    "xvla_release": _xvla_release,
    "xvla_cosine": _xvla_cosine,
    "xvla_paper": _xvla_paper,
    "warmup_cosine": _warmup_cosine,
}


def learning_rates(
    step: Array | int, config: OptimizerConfig, groups: tuple[Group, ...]
) -> dict[str, Array]:
    """Learning rate of each group at ``step`` (counted from 0)."""
    if config.schedule not in SCHEDULES:
        raise ConfigError(
            f"config.optimizer.schedule is {config.schedule!r}; known are {', '.join(SCHEDULES)}"
        )
    schedule, step = SCHEDULES[config.schedule], jnp.asarray(step)
    return {
        g.name: config.learning_rate * g.factor * schedule(step, g.waits, config) for g in groups
    }


def group_labels(params: Any, groups: tuple[Group, ...]) -> Any:
    """Name of the group of every leaf, as a tree.

    Raises:
        ConfigError: lists the parameters that no group covers.
    """
    uncovered = []

    def label(key_path: Any, _: Any) -> str:
        path = path_of(key_path)
        for group in groups:
            if re.search(group.pattern, path):
                return group.name
        uncovered.append(path)
        return ""

    labels = jax.tree_util.tree_map_with_path(label, params)
    if uncovered:
        raise ConfigError(
            f"no optimizer group covers {len(uncovered)} parameters: {', '.join(uncovered[:5])}; "
            f"the groups are {[(g.name, g.pattern) for g in groups]}"
        )
    return labels


class _GroupRateState(NamedTuple):
    count: Array  # int32, steps taken


def _scale_by_group_rate(
    config: OptimizerConfig, groups: tuple[Group, ...]
) -> optax.GradientTransformation:
    def init(params: Any) -> _GroupRateState:
        # An uncovered parameter is an error here, not in the first step.
        group_labels(params, groups)
        return _GroupRateState(jnp.zeros([], jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, _GroupRateState]:
        del params  # part of optax's signature; the rates do not use it
        rates = learning_rates(state.count, config, groups)
        labels = group_labels(updates, groups)
        updates = jax.tree.map(lambda u, name: -rates[name] * u, updates, labels)
        return updates, _GroupRateState(state.count + 1)

    return optax.GradientTransformation(init, update)


def make_optimizer(
    config: OptimizerConfig, groups: tuple[Group, ...]
) -> optax.GradientTransformation:
    """Clipping by global norm, Adam, decoupled weight decay, learning rate by group."""
    clip = (
        optax.clip_by_global_norm(config.max_grad_norm)
        if config.max_grad_norm
        else optax.identity()
    )
    return optax.chain(
        clip,
        optax.scale_by_adam(config.betas[0], config.betas[1], config.eps),
        optax.add_decayed_weights(config.weight_decay),
        _scale_by_group_rate(config, groups),
    )
