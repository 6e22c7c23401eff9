"""Which tensors an adapter file holds for a model, and where each belongs."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from xvla_jax.checkpoints.names import LAYOUTS, Dialect, Path, rows
from xvla_jax.checkpoints.peft import PeftConfig
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import CheckpointError
from xvla_jax.models.xvla import abstract_params

PREFIX: Final = "base_model.model."  # of every tensor in the file


@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor of an adapter file and its place in ``Adapter.tensors``.

    Attributes:
        name: in the file.
        path: of the leaf: the parameter's path, with "a" or "b" for a low-rank pair.
        leaf_shape: all layers of the leaf, as wide as the largest rank among them.
        index: of the tensor in the leaf.
        layout: key of the layout table.
        shape: in the file.
        scale: of the pair; None for a tensor stored whole.
    """

    name: str
    path: Path
    leaf_shape: tuple[int, ...]
    index: tuple[Any, ...]
    layout: str
    shape: tuple[int, ...]
    scale: float | None = None


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor of the base model: its module in PyTorch, its place and shape in the tree."""

    name: str
    path: Path
    layer: int | None
    layout: str
    leaf_shape: tuple[int, ...]

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def stack(self) -> tuple[int, ...]:
        return () if self.layer is None else self.leaf_shape[:1]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.leaf_shape[len(self.stack) :]

    @property
    def index(self) -> tuple[int, ...]:
        return () if self.layer is None else (self.layer,)


def slots(config: XVLAConfig, peft: PeftConfig, dialect: Dialect) -> list[Slot]:
    """Every tensor of an adapter for this model.

    Raises:
        CheckpointError: the adapter changes nothing of this model, or a module to which no matrix
            product can be added, or it stores only a part of a stack whole.
    """
    saved, adapted = [], []
    for tensor in _tensors(config, dialect):
        if peft.saves(tensor.module):
            saved.append(tensor)
        elif tensor.name.endswith(".weight") and peft.adapts(
            tensor.module, linear=tensor.layout == "linear"
        ):
            adapted.append(tensor)
    if not (saved or adapted):
        raise CheckpointError(
            f"the adapter (base: {peft.base}) changes no module of this model; its target_modules "
            f"are {peft.raw['target_modules']!r}"
        )
    _check(saved, adapted)
    whole = [
        Slot(
            PREFIX + t.name,
            t.path,
            t.leaf_shape,
            (*t.index, ...),
            t.layout,
            _stored(t.layout, t.shape),
        )
        for t in saved
    ]
    return [*_pairs(adapted, peft), *whole]


def modules(config: XVLAConfig, dialect: Dialect) -> set[str]:
    """Names of the modules that hold parameters."""
    return {dialect.rename(row.torch).rpartition(".")[0] for row in rows(config)}


@functools.lru_cache(maxsize=8)  # tracing the model's shapes takes a second
def _tensors(config: XVLAConfig, dialect: Dialect) -> tuple[_Tensor, ...]:
    template, found = abstract_params(config), []
    for row in rows(config):
        leaf: Any = template
        for key in row.path:
            leaf = leaf[key]
        layout = "linear" if row.torch in dialect.transposed else row.layout
        name = dialect.rename(row.torch)
        found.append(_Tensor(name, row.path, row.layer, layout, leaf.shape))
    return tuple(found)


def _pairs(adapted: list[_Tensor], peft: PeftConfig) -> Iterator[Slot]:
    """Slots of A ``[..., in, r]`` and B ``[..., r, out]``.

    A convolution's A is one with r channels and B a 1x1 convolution, so that the rule is the same.
    """
    widest: dict[Path, int] = {}  # rank among the layers of a leaf
    for t in adapted:
        widest[t.path] = max(widest.get(t.path, 0), peft.rank(t.module))
    for t in adapted:
        rank, width = peft.rank(t.module), widest[t.path]
        a, ones = t.shape[:-1], (1,) * (len(t.shape) - 2)
        name, scale = f"{PREFIX}{t.module}.lora_", peft.scale(t.module)
        yield Slot(
            f"{name}A.weight",
            (*t.path, "a"),
            (*t.stack, *a, width),
            (*t.index, ..., slice(rank)),
            t.layout,
            _stored(t.layout, (*a, rank)),
            scale,
        )
        yield Slot(
            f"{name}B.weight",
            (*t.path, "b"),
            (*t.stack, *ones, width, t.shape[-1]),
            (*t.index, ..., slice(rank), slice(None)),
            t.layout,
            _stored(t.layout, (*ones, rank, t.shape[-1])),
            scale,
        )


def _check(saved: list[_Tensor], adapted: list[_Tensor]) -> None:
    problems = [
        f"target_modules selects {t.module}, which is neither linear nor a plain convolution"
        for t in adapted
        if t.layout not in ("linear", "conv") or (t.layout == "conv" and t.shape[-2] == 1)
    ]
    counts = collections.Counter(t.path for t in saved)
    problems += [
        f"modules_to_save has {t.name}, but not all of the {t.stack[0]} layers of its stack"
        for t in saved
        if t.stack and counts[t.path] != t.stack[0]
    ]
    if problems:
        raise CheckpointError(
            "the adapter is of a kind that cannot be used here:\n  " + "\n  ".join(problems)
        )


def _stored(layout: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in the file; a broadcast zero takes no memory."""
    return LAYOUTS[layout].to_torch(np.broadcast_to(np.float32(0), shape)).shape
