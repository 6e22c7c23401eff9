"""TrainState, its sharded initialisation, and the jitted train step.

All randomness of a step is a function of (seed, step): noise, flow time, dropout. Nothing depends
on the number of hosts or devices. What colour jitter does to a picture comes with the batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from xvla_jax import flow
from xvla_jax.augment import jittered
from xvla_jax.batch import IMAGE_FIELDS, normalise
from xvla_jax.errors import ConfigError
from xvla_jax.groups import Groups, join, label_tree, split
from xvla_jax.lora import Adapter, LoraConfig, abstract_adapter, apply_adapter, init_adapter
from xvla_jax.models.xvla import XVLA, abstract_params, init_params
from xvla_jax.optimizer import (
    GroupRow,
    OptimizerConfig,
    group_rows,
    learning_rates,
    make_optimizer,
)
from xvla_jax.processor import Processor
from xvla_jax.sharding import tree_shardings

Array = jax.Array
Metrics = dict[str, Array]


class TrainState(struct.PyTreeNode):
    """What a step changes, and the base that it does not."""

    step: Array  # int32, steps taken
    params: Any  # of the model; with LoRA, the adapter's tensors
    opt_state: Any  # of the parameters that learn
    ema: Any  # their moving average; {} where not kept
    skipped: Array  # int32, steps without an update, because something was not finite
    base: Any = struct.field(default_factory=dict)  # the model's parameters under an adapter


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model learns.

    Attributes:
        model: the module.
        config: optimizer, schedule, and which parameters learn.
        accumulate: parts into which a batch is cut, one after the other; less memory.
        ema_decay: of the moving average of the parameters; 0 keeps none.
        lora: the adapter that learns in the place of the parameters; None for none.
    """

    model: XVLA
    config: OptimizerConfig
    accumulate: int = 1
    ema_decay: float = 0.0
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        """Raises a ConfigError for a number out of range."""
        if self.accumulate < 1:
            raise ConfigError(f"config.accumulate is {self.accumulate}; it must be 1 or more")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"config.ema_decay is {self.ema_decay}; 0 <= ema_decay < 1")

    @functools.cached_property
    def groups(self) -> Groups:
        """Which parameters learn, and how fast."""
        return self.config.groups(self.model.config)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """Of the parameters that learn."""
        return make_optimizer(self.config, self.groups)

    @functools.cached_property
    def adapter(self) -> Adapter | None:
        """Shapes and scales of the adapter that learns."""
        return self.lora and abstract_adapter(self.model.config, self.lora.peft())

    def weights(self, params: Any, base: Any) -> Any:
        """What the model computes with: a state's parameters, or its base with the adapter."""
        if self.adapter is None:
            return params
        return apply_adapter(base, params, self.adapter.scales, dtype=self.model.dtype)

    def group_rows(self) -> list[GroupRow]:
        """What happens to which parameters; a base has a row of its own."""
        base = abstract_params(self.model.config)
        learning = base if self.adapter is None else self.adapter.tensors
        rows = group_rows(learning, self.config, self.groups)
        if self.adapter is not None:
            size = sum(leaf.size for leaf in jax.tree.leaves(base))
            rows.append(GroupRow("base", size, learning_rate=0.0, frozen_until=None))
        return rows

    def fresh(self, params: Any) -> TrainState:
        """The state before the first step, without a base."""
        learning, _ = split(params, self.groups)
        ema = jax.tree.map(jnp.copy, learning) if self.ema_decay else {}
        zero = jnp.zeros([], jnp.int32)
        return TrainState(zero, params, self.optimizer.init(learning), ema, zero)

    def acting(self, state: TrainState) -> Any:
        """The parameters to act with: their moving average where one is kept."""
        params = state.params
        if self.ema_decay:
            params = join(state.ema, split(params, self.groups)[1])
        return self.weights(params, state.base)


def abstract_state(recipe: Recipe, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state; allocates nothing."""
    params = abstract_params(recipe.model.config)
    if recipe.adapter is None:
        shapes = jax.eval_shape(recipe.fresh, params)
    else:
        shapes = jax.eval_shape(recipe.fresh, recipe.adapter.tensors).replace(base=params)
    shardings = tree_shardings(shapes, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def init_state(
    recipe: Recipe, mesh: Mesh, *, seed: int, params: Mapping[str, Any] | None = None
) -> TrainState:
    """A fresh state on the mesh, from given parameters (numpy or jax) or from random ones.

    Every leaf is made where it lives: the whole model is never on one device. With LoRA the given
    parameters become the base.

    Raises:
        ConfigError: LoRA without parameters to adapt.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(recipe, mesh))
    bare = shardings.replace(base={})
    if recipe.lora is not None:
        if params is None:
            raise ConfigError("config.lora asks for an adapter; set config.init_from, its base")
        peft = recipe.lora.peft()
        tensors = init_adapter(params, recipe.model.config, peft, seed=seed).tensors
        placed = jax.device_put(tensors, shardings.params)
        return place_base(jax.jit(recipe.fresh, out_shardings=bare)(placed), mesh, params)
    if params is None:
        make = jax.jit(lambda key: recipe.fresh(init_params(recipe.model, key)), out_shardings=bare)
        # rbg: compiles in a third of the time that a threefry for each of hundreds of leaves takes
        return make(jax.random.key(seed, impl="rbg"))
    placed = jax.device_put(dict(params), shardings.params)
    return jax.jit(recipe.fresh, out_shardings=bare)(placed)


def place_base(state: TrainState, mesh: Mesh, params: Mapping[str, Any]) -> TrainState:
    """The state with a base under its adapter; no checkpoint of a LoRA run holds one."""
    return state.replace(base=jax.device_put(dict(params), tree_shardings(dict(params), mesh)))


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
        metrics |= {"loss": total.mean(), "grad_norm": optax.tree.norm(grads)}
        metrics |= _by_group(grads, state.step, recipe)
        metrics |= _by_domain(total, batch["domain_id"], recipe.model.config.num_domains)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
        new = _updated(state, learning, frozen, grads, recipe)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        skipped = state.skipped + (~finite).astype(jnp.int32)
        return kept.replace(step=state.step + 1, skipped=skipped), metrics | {"finite": finite}

    return jax.jit(train_step, donate_argnums=0)


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
    state: TrainState, learning: Any, frozen: Any, grads: Any, recipe: Recipe
) -> TrainState:
    updates, opt_state = recipe.optimizer.update(grads, state.opt_state, learning)
    learning = optax.apply_updates(learning, updates)
    decay = recipe.ema_decay
    ema = state.ema
    if decay:
        ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, ema, learning)
    return state.replace(params=join(learning, frozen), opt_state=opt_state, ema=ema)


def _by_group(grads: Any, step: Array, recipe: Recipe) -> Metrics:
    """Gradient norm and learning rate of each group that learns."""
    squares: dict[str, Array] = {}
    labels = label_tree(grads, recipe.groups)
    for leaf, label in zip(jax.tree.leaves(grads), jax.tree.leaves(labels), strict=True):
        layers = leaf.reshape(len(label.groups), -1)
        for group, square in zip(label.groups, jnp.square(layers).sum(axis=1), strict=True):
            squares[group.name] = squares.get(group.name, jnp.zeros(())) + square
    rates = learning_rates(step, recipe.config, recipe.groups)
    return {f"grad_norm/{name}": jnp.sqrt(square) for name, square in squares.items()} | {
        f"learning_rate/{name}": rates[name] for name in squares
    }


def _by_domain(losses: Array, domain_id: Array, num_domains: int) -> Metrics:
    """Mean loss of the samples of each domain (0 where there are none), and how many there are."""
    member = jax.nn.one_hot(domain_id, num_domains, dtype=jnp.float32)  # [B, num_domains]
    count = member.sum(axis=0)
    # a sample that is not finite would make every domain NaN in a plain product
    total = jnp.where(member > 0, losses[:, None], 0.0).sum(axis=0)
    return {"domain_loss": total / jnp.maximum(count, 1.0), "domain_samples": count}
