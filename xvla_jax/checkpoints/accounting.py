"""What is wrong with a checkpoint's tensors, all of it in one error."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, Final

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

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

# Types in which parameters are stored, the widest first, and safetensors' names for them.
STORED: Final[Mapping[str, str]] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def not_finite(value: np.ndarray) -> int:
    """How many values are NaN or infinite."""
    flat = value.reshape(-1)
    if flat.dtype == np.float32 and np.isfinite(np.dot(flat, flat)):  # no array of flags is made
        return 0
    return int(flat.size - np.count_nonzero(np.isfinite(flat)))


def refuse_not_finite(counts: Mapping[str, int]) -> None:
    """Raises if any of the tensors has values that are NaN or infinite; it gets their counts."""
    bad = [f"{name}: {count} values" for name, count in counts.items() if count]
    if bad:
        raise CheckpointError(
            f"{len(bad)} tensors hold NaN or infinity; the checkpoint is damaged or its training "
            "diverged, take an earlier one:\n  " + "\n  ".join(bad)
        )


def check_stored_tree(folder: pathlib.Path, template: Any) -> None:
    """Refuses an Orbax item with leaves unlike the template's in name or shape; reads no values.

    Raises:
        CheckpointError: names the leaves.
        FileNotFoundError, ValueError: there is no such item, or it cannot be read.
    """
    with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
        stored = handler.metadata(epath.Path(folder)).tree
    try:
        check_tree(stored, template)
    except CheckpointError as error:
        raise CheckpointError(f"{folder.name}: {error}") from error


def check_tree(tree: Any, template: Any) -> None:
    """Refuses a tree whose leaves are not those of the template in name and shape."""
    found, wanted = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in flat}
        for flat in (jax.tree.leaves_with_path(side) for side in (tree, template))
    )
    wrong = [
        f"{name}: found {found.get(name, 'nothing')}, expected {wanted.get(name, 'nothing')}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if wrong:
        raise CheckpointError(
            f"the tree is not that of the config; {len(wrong)} leaves differ:\n  "
            + "\n  ".join(wrong)
        )


def stored_names(files: TensorFiles, config: XVLAConfig, dialect: Dialect) -> dict[str, str]:
    """Released name -> name in the file; the token table is found under either of its names."""
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
    found: Mapping[str, TensorInfo],
    wanted: Mapping[str, tuple[int, ...]],
    *,
    optional: Collection[str] = (),
) -> list[str]:
    """Lines on tensors that are missing, have another shape or type, or that nothing uses.

    Args:
        found: what a file holds.
        wanted: name -> shape.
        optional: names that may be missing; they are not surplus either.
    """
    problems = []
    for name, shape in wanted.items():
        if name not in found:
            if name not in optional:
                problems.append(f"missing    {name} {list(shape)}")
            continue
        info = found[name]
        if info.shape != shape:
            problems.append(f"mis-shaped {name}: found {list(info.shape)}, expected {list(shape)}")
        if info.dtype not in STORED.values():
            problems.append(f"mis-typed  {name}: {info.dtype}; allowed are {[*STORED.values()]}")
    surplus = sorted(found.keys() - wanted.keys() - set(optional))
    return problems + [f"surplus    {name} {list(found[name].shape)}" for name in surplus]


def account(
    files: TensorFiles,
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    dialect: Dialect,
) -> None:
    """Every tensor must be used once and have a type and the shape that the config implies."""
    wanted = {
        names[released]: shape[::-1] if released in dialect.transposed else shape
        for released, shape in shapes.items()
    }
    optional = {*(names[buffer] for buffer in BUFFERS), dialect.rename(SHARED)}
    problems = tensor_problems(files.info, wanted, optional=optional - {names[SHARED]})
    if problems:
        raise CheckpointError(
            f"the weights ({dialect.name} layout) do not fit config.json, give the one that came "
            f"with them; {len(problems)} tensors differ:\n  " + "\n  ".join(problems)
        )


def buffer_shapes(config: XVLAConfig) -> dict[str, tuple[int, ...]]:
    """Released name -> shape of the tensors that are saved but are no parameters."""
    vision = config.vision
    return {
        TEMPORAL: (vision.max_temporal_embeddings, vision.dim_embed[-1]),
        LOGITS_BIAS: (1, config.text.vocab_size),
    }


def check_first_frame(temporal: np.ndarray, name: str) -> None:
    """Row 0 of the stored sine/cosine table must be 0, 1, 0, 1, ...

    It is all that a single frame uses, and the model has it built in.

    Raises:
        CheckpointError: it is not.
    """
    wanted = np.arange(temporal.shape[-1]) % 2
    wrong = np.flatnonzero(np.asarray(temporal[0], np.float32) != wanted)
    if len(wrong):
        channel = int(wrong[0])
        raise CheckpointError(
            f"{name}[0, {channel}] is {float(temporal[0, channel]):g}, the sine/cosine table of "
            f"X-VLA has {wanted[channel]} there; {len(wrong)} channels differ. The weights come "
            "from a changed model, whose image features this one would not reproduce"
        )
