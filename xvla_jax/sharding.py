"""Mesh, placement of parameters by path, placement of batches.

A parallelism scheme is a table of (path regex, placement); the first match wins. The same table
places optimizer moments, as their paths contain the parameter's path.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from xvla_jax.errors import ConfigError

MESH_AXES: Final = ("data", "fsdp")
BATCH_SPEC: Final = P(MESH_AXES)  # the batch is split over both axes
_MIN_SHARDED: Final = 2**14  # elements; smaller leaves cost more in collectives than they save

Placement = Callable[[tuple[int, ...], str, int], P]


def replicated(shape: tuple[int, ...], path: str, size: int) -> P:  # noqa: ARG001
    """Puts a copy on each device."""
    return P()


def largest_axis(shape: tuple[int, ...], path: str, size: int) -> P:
    """Splits the largest axis that ``size`` divides over ``fsdp``."""
    # A scan takes one layer at a time, so the layer axis of stacked parameters is never split.
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
    # A depthwise kernel: split by channels, TPU's compiler splits the convolution with it, and then
    # every chip works on the images of all.
    (r"/conv[12]/kernel$", replicated),
    (r".*", largest_axis),
)


def make_mesh(data: int, fsdp: int, devices: list[Any] | None = None) -> Mesh:
    """Makes a ``data x fsdp`` mesh with Auto axes; one of the two may be -1, "all the rest".

    Raises:
        ConfigError: the product is not the number of devices, or the devices are wired such that
            no mesh of this shape can be laid.
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
            "set config.mesh.data and config.mesh.fsdp (-1 = all the rest); the nearest fsdp is "
            f"{_nearest_divisor(fsdp, len(devices))}"
        )
    # Auto: the compiler propagates shardings; make_mesh's default is Explicit axes.
    axis_types = (AxisType.Auto,) * 2
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    with contextlib.suppress(NotImplementedError):  # no product of its axes is one of the mesh's
        if slices == 1:
            return jax.make_mesh((data, fsdp), MESH_AXES, axis_types=axis_types, devices=devices)
    return Mesh(_split_grid(data, fsdp, slices, devices), MESH_AXES, axis_types=axis_types)


def _split_grid(data: int, fsdp: int, slices: int, devices: list[Any]) -> NDArray[np.object_]:
    """Devices ``[data, fsdp]`` where an axis of the slice is divided between both axes.

    ``jax.make_mesh`` does this for v5e alone, and lays no mesh over several slices. Here slices
    divide the axis ``data``, as links between slices are slow.
    """
    each = len(devices) // slices
    if each % fsdp:
        raise ConfigError(
            f"config.mesh.fsdp is {fsdp}, but no copy of the weights may span two of the {slices} "
            f"slices of {each} devices; the nearest that divides {each} is "
            f"{_nearest_divisor(min(fsdp, each), each)}"
        )
    try:
        if slices == 1:
            return mesh_utils.create_device_mesh(
                (data, fsdp), devices, allow_split_physical_axes=True
            )
        return mesh_utils.create_hybrid_device_mesh(
            (data // slices, fsdp), (slices, 1), devices, allow_split_physical_axes=True
        )
    except (NotImplementedError, ValueError) as error:
        raise ConfigError(
            f"mesh data x fsdp = {data} x {fsdp} cannot be laid on these {len(devices)} devices: "
            f"{error}; with config.mesh.fsdp = 1 one always can"
        ) from error


def _nearest_divisor(number: int, count: int) -> int:
    return min((n for n in range(1, count + 1) if count % n == 0), key=lambda n: abs(n - number))


def global_batch_size(batch_size: int, *, per: str, devices: int) -> int:
    """Returns the samples of a step over all devices.

    Args:
        batch_size: from the config.
        per: unit of ``batch_size``: ``run`` or ``device``.
        devices: of the mesh.

    Raises:
        ConfigError: ``per`` is neither.
    """
    factors = {"run": 1, "device": devices}
    if per not in factors:
        raise ConfigError(f"config.batch_size_per is {per!r}; allowed are {', '.join(factors)}")
    return batch_size * factors[per]


def batch_split(x: jax.Array) -> jax.Array:
    """Keeps activations ``[B, ...]`` split like the batch, if ``jax.set_mesh`` has set a mesh.

    Without it the compiler may split them like the weights of a product, and then gathers
    activations instead of weights.
    """
    if set(MESH_AXES) - set(jax.sharding.get_abstract_mesh().axis_names):
        return x
    return jax.lax.with_sharding_constraint(x, BATCH_SPEC)


def devices_of_batch() -> int:
    """Returns the number of devices that share a batch: 1 if ``jax.set_mesh`` has set no mesh."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return math.prod(sizes.get(axis, 1) for axis in MESH_AXES)


def path_of(key_path: Any) -> str:
    """Joins a JAX key path to ``a/b/c``."""
    return "/".join(
        str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in key_path
    )


def tree_shardings(tree: Any, mesh: Mesh, rules: tuple[tuple[str, Placement], ...] = RULES) -> Any:
    """Returns a sharding for each leaf of a tree; leaves need a ``shape`` alone.

    Raises:
        ConfigError: no rule covers a path.
    """

    def place(key_path: Any, leaf: Any) -> NamedSharding:
        path = path_of(key_path)
        for pattern, placement in rules:
            if re.search(pattern, path):
                return NamedSharding(mesh, placement(tuple(leaf.shape), path, mesh.shape["fsdp"]))
        raise ConfigError(f"no sharding rule covers {path!r}; add a row to xvla_jax.sharding.RULES")

    return jax.tree_util.tree_map_with_path(place, tree)


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Turns this process's part of a batch, numpy ``[B, ...]``, into global arrays.

    They are split over both mesh axes.

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
