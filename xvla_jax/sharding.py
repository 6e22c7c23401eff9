"""Mesh, placement of parameters by path, placement of batches.

A parallelism scheme is a table of (path regex, placement); the first match wins. The same table
places optimizer moments, whose paths contain the parameter's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from xvla_jax.errors import ConfigError

MESH_AXES: Final = ("data", "fsdp")
BATCH_SPEC: Final = P(MESH_AXES)  # the batch is split over both axes
_MIN_SHARDED: Final = 2**14  # elements; smaller leaves cost more in collectives than they save

Placement = Callable[[tuple[int, ...], str, int], P]


def replicated(shape: tuple[int, ...], path: str, size: int) -> P:  # noqa: ARG001
    """A copy on every device."""
    return P()


def largest_axis(shape: tuple[int, ...], path: str, size: int) -> P:
    """FSDP: the largest axis that ``size`` divides goes over ``fsdp``.

    The layer axis of scanned towers never does.
    """
    first = 1 if re.search(r"(^|/)(blocks|layers)/", path) else 0
    axes = [i for i in range(first, len(shape)) if shape[i] % size == 0]
    if not axes or np.prod(shape) < _MIN_SHARDED:
        return P()
    chosen = max(axes, key=lambda i: shape[i])
    return P(*("fsdp" if i == chosen else None for i in range(len(shape))))


RULES: Final[tuple[tuple[str, Placement], ...]] = (
    # Gathered by domain in every step.
    (r"(soft_prompts|action_encoder|action_decoder)", replicated),
    # An adapter's pair: small, and multiplied for every shard of the matrix that it changes.
    (r"/[ab]$", replicated),
    (r".*", largest_axis),
)


def make_mesh(data: int, fsdp: int, devices: list[Any] | None = None) -> Mesh:
    """A ``data x fsdp`` mesh with Auto axes; -1 for one of the two means "all the rest".

    Raises:
        ConfigError: the product is not the number of devices.
    """
    devices = list(jax.devices()) if devices is None else devices
    if data == fsdp == -1:
        raise ConfigError("config.mesh.data and config.mesh.fsdp are both -1; one must be a number")
    if data == -1:
        data = len(devices) // max(fsdp, 1)
    if fsdp == -1:
        fsdp = len(devices) // max(data, 1)
    if data * fsdp != len(devices):
        raise ConfigError(
            f"mesh data x fsdp = {data} x {fsdp} does not use all of the {len(devices)} devices; "
            "set config.mesh.data and config.mesh.fsdp (-1 = all the rest)"
        )
    return jax.make_mesh((data, fsdp), MESH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def global_batch_size(batch_size: int, *, per: str, devices: int) -> int:
    """Samples of a step over all of so many devices.

    Args:
        batch_size: as the config has it.
        per: what it counts for: ``run`` or ``device``.
        devices: of the mesh.

    Raises:
        ConfigError: ``per`` is neither.
    """
    factors = {"run": 1, "device": devices}
    if per not in factors:
        raise ConfigError(f"config.batch_size_per is {per!r}; allowed are {', '.join(factors)}")
    return batch_size * factors[per]


def batch_split(x: jax.Array) -> jax.Array:
    """Keeps activations ``[B, ...]`` split like the batch, where a mesh is set.

    Without it the compiler may split them like the weights that they meet, and then gathers
    activations instead of weights. ``jax.set_mesh(mesh)`` around the call sets the mesh.
    """
    if set(MESH_AXES) - set(jax.sharding.get_abstract_mesh().axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, BATCH_SPEC)


def path_of(key_path: Any) -> str:
    """A JAX key path as ``a/b/c``."""
    return "/".join(
        str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in key_path
    )


def tree_shardings(tree: Any, mesh: Mesh, rules: tuple[tuple[str, Placement], ...] = RULES) -> Any:
    """A sharding for every leaf (anything with ``shape``) of a tree.

    Raises:
        ConfigError: a path that no rule covers.
    """

    def place(key_path: Any, leaf: Any) -> NamedSharding:
        path = path_of(key_path)
        for pattern, placement in rules:
            if re.search(pattern, path):
                return NamedSharding(mesh, placement(tuple(leaf.shape), path, mesh.shape["fsdp"]))
        raise ConfigError(f"no sharding rule covers {path!r}; add a row to xvla_jax.sharding.RULES")

    return jax.tree_util.tree_map_with_path(place, tree)


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's part of a batch -> global arrays split over both mesh axes.

    The part is numpy, with leading axis B.

    Raises:
        ConfigError: the devices of this process do not divide its part.
    """
    local = len(mesh.local_devices)
    size = len(next(iter(batch.values())))
    if size % local:
        raise ConfigError(
            f"a batch of {size} per process cannot be split over {local} devices; "
            "change config.batch_size"
        )
    sharding = NamedSharding(mesh, BATCH_SPEC)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.ascontiguousarray(value))
        for name, value in batch.items()
    }
