"""Checks of a checkpoint's tensors: names, shapes, types, sizes and finite values.

Each check lists everything at fault in one error.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Mapping
from typing import Any, Final

import jax
import numpy as np
from etils import epath

from xvla_jax.buckets import Place
from xvla_jax.checkpoints.names import (
    BUFFERS,
    EMBED_TOKENS,
    LOGITS_BIAS,
    SHARED,
    TEMPORAL,
    Dialect,
    rows,
)
from xvla_jax.checkpoints.safetensors_files import TensorFiles, TensorInfo
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import CheckpointError
from xvla_jax.untrusted import check_bound

# Types in which parameters are stored, the widest first, and safetensors' names for them.
STORED: Final[Mapping[str, str]] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
INT8: Final = "int8"  # stored type of weights that `models.int8` describes; the others are float32


def not_finite(value: np.ndarray) -> int:
    """Counts the values that are NaN or infinite."""
    flat = value.reshape(-1)
    # a finite sum of squares needs no array of flags; an overflowing one is counted below
    if flat.dtype == np.float32 and np.isfinite(np.dot(flat, flat)):
        return 0
    return int(flat.size - np.count_nonzero(np.isfinite(flat)))


def refuse_not_finite(counts: Mapping[str, int]) -> None:
    """Raises if a tensor has values that are NaN or infinite; ``counts`` are by name."""
    bad = [f"{name}: {count} values" for name, count in counts.items() if count]
    if bad:
        raise CheckpointError(
            f"{len(bad)} tensors hold NaN or infinity; the checkpoint is damaged or its training "
            "diverged, take an earlier one:\n  " + "\n  ".join(bad)
        )


def check_size(template: Any, where: object) -> None:
    """Refuses a model or adapter of more parameters than `BOUNDS` allows, before any is allocated.

    Args:
        template: tree of leaves with ``shape``.
        where: the file that describes it, for the message.
    """
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(template))
    check_bound("parameters", total, where)


def check_stored_tree(folder: Place, template: Any) -> None:
    """Refuses an Orbax item with leaves unlike the template's in name or shape; reads no values.

    Raises:
        CheckpointError: names the leaves.
        FileNotFoundError, ValueError: there is no such item, or it cannot be read.
    """
    import orbax.checkpoint as ocp  # a quarter of the time that importing a policy takes

    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        stored = handler.metadata(epath.Path(folder)).tree
    try:
        check_tree(stored, template)
    except CheckpointError as error:
        raise CheckpointError(f"{folder.name}: {error}") from error


def check_tree(tree: Any, template: Any) -> None:
    """Refuses a tree whose leaves are not those of the template in name and shape."""
    stored, expected = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in flat}
        for flat in (jax.tree.leaves_with_path(side) for side in (tree, template))
    )
    wrong = [
        f"{name}: found {stored.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
        for name in sorted(stored.keys() | expected.keys())
        if stored.get(name) != expected.get(name)
    ]
    if wrong:
        raise CheckpointError(
            f"the tree is not that of the config; {len(wrong)} leaves differ:\n  "
            + "\n  ".join(wrong)
        )


def stored_names(files: TensorFiles, config: XVLAConfig, dialect: Dialect) -> dict[str, str]:
    """Maps released names to names in the file; the token table may have either of its two."""
    names = {name: dialect.rename(name) for name in (*(r.torch for r in rows(config)), *BUFFERS)}
    shared, alias = dialect.rename(SHARED), dialect.rename(EMBED_TOKENS)
    if alias in files.info:
        same = shared not in files.info or np.array_equal(files.read(shared), files.read(alias))
        if not same:
            raise CheckpointError(
                f"{shared} and {alias} are one parameter of the model, "
                "but the file holds two different tensors"
            )
        names[SHARED] = alias
    return names


def tensor_problems(
    stored: Mapping[str, TensorInfo],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    optional: Collection[str] = (),
    int8: Collection[str] = (),
) -> list[str]:
    """Lists tensors that are missing, have another shape or type, or that nothing uses.

    Args:
        stored: types and shapes of a file, by name.
        shapes: expected shapes, by name.
        optional: names that may be missing; they are not surplus either.
        int8: names of tensors that may be int8.
    """
    problems = []
    for name, shape in shapes.items():
        if name not in stored:
            if name not in optional:
                problems.append(f"missing    {name} {list(shape)}")
            continue
        info = stored[name]
        if info.shape != shape:
            problems.append(f"mis-shaped {name}: found {list(info.shape)}, expected {list(shape)}")
        if info.dtype not in STORED.values() and name not in int8:
            problems.append(f"mis-typed  {name}: {info.dtype}; allowed are {[*STORED.values()]}")
    surplus = sorted(stored.keys() - shapes.keys() - set(optional))
    return problems + [f"surplus    {name} {list(stored[name].shape)}" for name in surplus]


def account(
    files: TensorFiles,
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    dialect: Dialect,
    *,
    int8: Collection[str],
) -> None:
    """Refuses tensors unless each is used once and has the shape that the config implies.

    ``int8`` has the names in the file of tensors that may be int8.
    """
    expected = {
        names[released]: shape[::-1] if released in dialect.transposed else shape
        for released, shape in shapes.items()
    }
    optional = {*(names[buffer] for buffer in BUFFERS), dialect.rename(SHARED)}
    optional -= {names[SHARED]}
    problems = tensor_problems(files.info, expected, optional=optional, int8=int8)
    if problems:
        raise CheckpointError(
            f"the weights ({dialect.name} layout) do not fit config.json, give the one that came "
            f"with them; {len(problems)} tensors differ:\n  " + "\n  ".join(problems)
        )


def buffer_shapes(config: XVLAConfig) -> dict[str, tuple[int, ...]]:
    """Returns released name -> shape of the tensors that are saved but are no parameters."""
    vision = config.vision
    return {
        TEMPORAL: (vision.max_temporal_embeddings, vision.dim_embed[-1]),
        LOGITS_BIAS: (1, config.text.vocab_size),
    }


def check_first_frame(temporal: np.ndarray, name: str) -> None:
    """Refuses a stored sine/cosine table whose row 0 is not 0, 1, 0, 1, ...

    A single frame uses row 0 alone, and the model has it built in.

    Raises:
        CheckpointError: names the first channel that differs.
    """
    expected = np.arange(temporal.shape[-1]) % 2
    wrong = np.flatnonzero(np.asarray(temporal[0], np.float32) != expected)
    if len(wrong):
        channel = int(wrong[0])
        raise CheckpointError(
            f"{name}[0, {channel}] is {float(temporal[0, channel]):g}, the sine/cosine table of "
            f"X-VLA has {expected[channel]} there; {len(wrong)} channels differ. The weights come "
            "from a changed model, whose image features this one would not reproduce"
        )
