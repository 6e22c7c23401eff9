"""Groups of parameters: rows of (path regex -> learning rate, weight decay, when it is frozen).

A leaf of a scanned tower is a stack of layers; its path has the layer's number in it, as in
``transformer/blocks/23/attn/qkv/kernel``, so a row can name single layers. The first row that
matches wins; a parameter that no row covers is refused. As in X-VLA's trainer a group that is
frozen at first has learning rate 0, but its gradients are counted in the clipping norm and fill
Adam's moments. A group that is frozen always has neither gradients nor moments.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError
from xvla_jax.sharding import path_of

NEVER, AT_FIRST, ALWAYS = "never", "at first", "always"  # frozen
_STACK: Final = re.compile(r"^(.*?(?:^|/)(?:blocks|layers))/(.*)$")


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters whose path matches ``pattern``.

    Attributes:
        name: for the table and the metrics.
        pattern: searched in the path.
        factor: of the base learning rate.
        frozen: ``NEVER``, ``AT_FIRST`` (until ``freeze_steps``) or ``ALWAYS``.
        decay: factor of the weight decay.
    """

    name: str
    pattern: str
    factor: float
    frozen: str
    decay: float = 1.0


@dataclasses.dataclass(frozen=True)
class Label:
    """The group of a leaf, or of each of its layers where they differ."""

    groups: tuple[Group, ...]

    @property
    def trains(self) -> bool:
        """True if any layer is ever trained."""
        return any(group.frozen != ALWAYS for group in self.groups)


Groups = tuple[Group, ...]

_PROMPTS: Final = r"^transformer/soft_prompts$"
_HEADS: Final = r"^transformer/action_(encoder|decoder)/"
_ALL: Final = r""


def xvla_groups(learning_coef: float, vlm_decay: float = 1.0) -> Groups:
    """Returns the four groups of X-VLA's trainer; ``vlm_decay`` is for vlm and prompts."""
    return (
        Group("vlm", r"^vlm/", learning_coef, AT_FIRST, vlm_decay),
        Group("soft_prompts", _PROMPTS, learning_coef, NEVER, vlm_decay),
        Group("action_heads", _HEADS, 1.0, NEVER),
        Group("transformer_core", r"^transformer/", 1.0, AT_FIRST),
    )


def _prompts_and_heads(learning_coef: float) -> Groups:
    return (
        Group("soft_prompts", _PROMPTS, learning_coef, NEVER),
        Group("action_heads", _HEADS, 1.0, NEVER),
    )


def _last_layers(depth: int, count: int) -> str:
    if not 1 <= count <= depth:
        raise ConfigError(
            f"config.optimizer.last_layers is {count}; this model has 1 .. {depth} blocks"
        )
    return rf"^transformer/(norm|blocks/({'|'.join(map(str, range(depth - count, depth)))}))/"


@dataclasses.dataclass(frozen=True)
class GroupOptions:
    """Numbers that a mode may use: those of the config, and the depth of the policy head."""

    learning_coef: float  # factor of the groups vlm and soft_prompts
    last_layers: int  # blocks that train in mode last_layers
    depth: int


# config.optimizer.mode -> rows; the first that matches a path wins, so "rest" is last
MODES: Final[Mapping[str, Callable[[GroupOptions], Groups]]] = {
    # the released trainer, pretraining and full fine-tuning alike; with freeze_steps it is the
    # two-step adaptation: prompts and heads first, then all
    "xvla": lambda o: xvla_groups(o.learning_coef),
    # the authors' pretraining script: weight decay on core and heads only
    "xvla_pretrain": lambda o: xvla_groups(o.learning_coef, vlm_decay=0.0),
    "prompts": lambda o: (
        Group("soft_prompts", _PROMPTS, o.learning_coef, NEVER),
        Group("rest", _ALL, 0.0, ALWAYS),
    ),
    "prompts_and_heads": lambda o: (
        *_prompts_and_heads(o.learning_coef),
        Group("rest", _ALL, 0.0, ALWAYS),
    ),
    "last_layers": lambda o: (
        *_prompts_and_heads(o.learning_coef),
        Group("last_layers", _last_layers(o.depth, o.last_layers), 1.0, AT_FIRST),
        Group("rest", _ALL, 0.0, ALWAYS),
    ),
}


def mode_groups(mode: str, model: XVLAConfig, *, learning_coef: float, last_layers: int) -> Groups:
    """Returns the rows of a mode.

    Raises:
        ConfigError: no such mode.
    """
    if mode not in MODES:
        raise ConfigError(f"config.optimizer.mode is {mode!r}; known are {', '.join(MODES)}")
    return MODES[mode](GroupOptions(learning_coef, last_layers, model.depth))


def layer_paths(path: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Returns the path of a leaf for each of its layers; the path itself if it is no stack."""
    # The first folder named blocks or layers is the scanned one; axis 0 of its leaves is the layer.
    stack = _STACK.match(path)
    if not stack:
        return (path,)
    return tuple(f"{stack[1]}/{layer}/{stack[2]}" for layer in range(shape[0]))


def label_tree(params: Any, groups: Groups) -> Any:
    """Returns a `Label` for every leaf.

    Raises:
        ConfigError: lists the parameters that no group covers.
    """
    uncovered = []

    def group_of(path: str) -> Group | None:
        first = next((group for group in groups if re.search(group.pattern, path)), None)
        if first is None:
            uncovered.append(path)  # all are named together, below
        return first

    def label(key_path: Any, leaf: Any) -> Label:
        paths = layer_paths(path_of(key_path), tuple(leaf.shape))
        by_layer = tuple(group for path in paths if (group := group_of(path)) is not None)
        # One group for the entire stack, so that its rate stays a scalar.
        return Label(by_layer[:1] if len(set(by_layer)) == 1 else by_layer)

    # Works on anything with a shape: arrays, gradients, and the abstract values of a plan.
    labels = jax.tree_util.tree_map_with_path(label, params)
    if uncovered:
        raise ConfigError(
            f"no optimizer group covers {len(uncovered)} parameters: {', '.join(uncovered[:5])}; "
            f"the groups are {[(g.name, g.pattern) for g in groups]} (xvla_jax/training/groups.py)"
        )
    return labels


def split(params: Mapping[str, Any], groups: Groups) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns two nested dictionaries: parameters that train, and those that never do."""
    flat: dict[Any, Any] = flatten_dict(params)
    labels: dict[Any, Any] = flatten_dict(label_tree(params, groups))
    trained = {path: leaf for path, leaf in flat.items() if labels[path].trains}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return unflatten_dict(trained), unflatten_dict(frozen)


def join(trained: Mapping[str, Any], frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the two parts of `split` as one tree."""
    return unflatten_dict({**flatten_dict(trained), **flatten_dict(frozen)})


def group_sizes(params: Any, groups: Groups) -> dict[str, int]:
    """Returns the number of parameters in each group; works on shapes."""
    sizes = dict.fromkeys((group.name for group in groups), 0)
    for leaf, label in zip(
        jax.tree.leaves(params), jax.tree.leaves(label_tree(params, groups)), strict=True
    ):
        each = int(np.prod(leaf.shape)) // len(label.groups)  # of a layer, or of all
        for group in label.groups:
            sizes[group.name] += each
    return sizes
