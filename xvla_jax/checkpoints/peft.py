"""PEFT's ``adapter_config.json``, and the tensors that it implies for a model.

PEFT finds modules by name, with rules of its own for each field. They are repeated here, so that
names, shapes and scales of all tensors are known before the weights are opened: a `Slot` for each.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import numpy as np
import regex

from xvla_jax.checkpoints.names import LAYOUTS, Dialect, Path, rows
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import CheckpointError
from xvla_jax.models.xvla import abstract_params
from xvla_jax.untrusted import BOUNDS, check_bound, check_object, read_json

ADAPTER_CONFIG_NAME: Final = "adapter_config.json"
ALL_LINEAR: Final = "all-linear"

_LARGEST_RANK: Final = BOUNDS["columns of a low-rank pair"]
_MATCH_S: Final = 1.0  # seconds for a pattern and a name; microseconds are usual
_OFF: Final = (None, False, [], {}, "")
# Fields that change the numbers: the values for which the result is W + scale * A B and no more.
_SUPPORTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    # the others (pissa, olora, corda, loftq) change the base weights too, which are not at hand
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
    "use_dora": _OFF,
    "use_qalora": _OFF,
    "lora_bias": _OFF,
    "fan_in_fan_out": _OFF,
    "target_parameters": _OFF,
    "trainable_token_indices": _OFF,
    "layer_replication": _OFF,
    "alora_invocation_tokens": _OFF,
    "arrow_config": _OFF,
}
# Fields that do not change the numbers: notes, training only, or sizes of what has to be off.
_HARMLESS: Final = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",  # initialisation, as the next two
        "eva_config",
        "loftq_config",
        "inference_mode",
        "lora_dropout",  # while training
        "megatron_config",  # where the base was trained
        "megatron_core",
        "peft_version",
        "qalora_group_size",  # of use_qalora
        "revision",  # of the base
        "runtime_config",
        "task_type",
    }
)


def _positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 < value < math.inf


def _rank(value: Any) -> bool:
    return _positive(value) and isinstance(value, int) and value <= _LARGEST_RANK


def _regex(value: Any) -> bool:
    try:
        re.compile(value)
        regex.compile(value)
    except (re.error, regex.error, TypeError, RecursionError, OverflowError):
        return False
    return isinstance(value, str)


def _match(pattern: str, module: str, *, full: bool = False) -> regex.Match[str] | None:
    """Matches like `re.match`, or `re.fullmatch`; refuses a pattern of exponential time."""
    try:
        return (regex.fullmatch if full else regex.match)(pattern, module, timeout=_MATCH_S)
    except TimeoutError as error:
        raise CheckpointError(
            f"{ADAPTER_CONFIG_NAME}: matching {pattern!r} against {module} takes more than "
            f"{_MATCH_S} s; give a simpler pattern"
        ) from error


def _switch(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _layers(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    return all(isinstance(n, int) and not isinstance(n, bool) for n in numbers)


def _names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_regex, value))


def _by_regex(value: Any, number: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(_regex, value)) and all(map(number, value.values()))


# Field -> form, and its test.
_FORMS: Final[Mapping[str, tuple[str, Callable[[Any], bool]]]] = {
    "r": ("a positive integer", _rank),
    "lora_alpha": ("a positive number", _positive),
    "target_modules": ("a regular expression or a list of names", lambda v: _regex(v) or _names(v)),
    "exclude_modules": (
        "nothing, or as target_modules",
        lambda v: v is None or _regex(v) or _names(v),
    ),
    "modules_to_save": ("nothing, or a list of names", lambda v: v is None or _names(v)),
    "rank_pattern": (
        "nothing, or ranks by regular expression",
        lambda v: v is None or _by_regex(v, _rank),
    ),
    "alpha_pattern": (
        "nothing, or numbers by regular expression",
        lambda v: v is None or _by_regex(v, _positive),
    ),
    "use_rslora": ("nothing, true or false", _switch),
    "layers_to_transform": ("nothing, or numbers of layers", _layers),
    "layers_pattern": (
        "nothing, or a name or names",
        lambda v: v is None or _regex(v) or _names(v),
    ),
}
_KNOWN: Final = frozenset({*_SUPPORTED, *_HARMLESS, *_FORMS})


def form_problems(raw: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Returns a line for each field of these names whose value has not its form."""
    return [
        f"{name} is {raw.get(name)!r}; {_FORMS[name][0]} is expected"
        for name in names
        if not _FORMS[name][1](raw.get(name))
    ]


@dataclasses.dataclass(frozen=True)
class PeftConfig:
    """``adapter_config.json``; ``raw`` has all of its fields, also those that are not read here."""

    raw: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuses fields that change the numbers and are not computed here, all in one error."""
        raw = self.raw
        problems = [
            f"{name} is {raw.get(name)!r}; supported: {', '.join(map(repr, allowed))}"
            for name, allowed in _SUPPORTED.items()
            if raw.get(name) not in allowed
        ]
        problems += form_problems(raw, _FORMS)
        problems += [
            f"{name} is {value!r}; this field is not known here, so it has to be empty"
            for name, value in raw.items()
            if name not in _KNOWN and value not in _OFF
        ]
        if problems:
            raise CheckpointError(
                f"{ADAPTER_CONFIG_NAME} describes an adapter that cannot be used here:\n  "
                + "\n  ".join(problems)
                + "\nMerging it into its base in PEFT (merge_and_unload) may help."
            )

    @classmethod
    def read(cls, folder: pathlib.Path) -> PeftConfig:
        """Reads the config of an adapter folder.

        Raises:
            CheckpointError: there is none, or it asks for something that is not supported.
        """
        path = folder / ADAPTER_CONFIG_NAME
        if not path.is_file():
            content = (
                sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "no such folder"
            )
            raise CheckpointError(
                f"{folder} is no PEFT adapter: it has no {ADAPTER_CONFIG_NAME}; found {content}"
            )
        return cls(check_object(read_json(path), path, error=CheckpointError))

    @property
    def base(self) -> str:
        """Name of the base that the adapter was trained on, as PEFT noted it."""
        return str(self.raw.get("base_model_name_or_path") or "an unnamed base")

    def rank(self, module: str) -> int:
        """Returns the columns of A for a module."""
        return int(self._pattern("rank_pattern", module, self.raw["r"]))

    def scale(self, module: str) -> float:
        """Returns the factor of B A for a module."""
        rank = self.rank(module)
        alpha = self._pattern("alpha_pattern", module, self.raw["lora_alpha"])
        return alpha / (math.sqrt(rank) if self.raw.get("use_rslora") else rank)

    def adapts(self, module: str, *, linear: bool) -> bool:
        """True if a module gets a low-rank pair; ``linear`` for an ``nn.Linear``."""
        targets, saved = self.raw["target_modules"], self.raw.get("modules_to_save") or []
        excluded = self.raw.get("exclude_modules")
        if excluded and _selects(excluded, module):
            return False
        if any(_match(rf"(^|.*\.){entry}($|\..*)", module) for entry in saved):
            return False
        if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
            return linear
        if isinstance(targets, list) and module in targets:  # a full name counts in every layer
            return True
        return _selects(targets, module) and self._layer_selected(module)

    def saves(self, module: str) -> bool:
        """True if a module, or one that it is part of, is stored completely."""
        parts = module.split(".")
        names = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return any(
            name.endswith(entry)
            for name in names
            for entry in self.raw.get("modules_to_save") or []
        )

    def _pattern(self, field: str, module: str, default: float) -> float:
        patterns = self.raw.get(field) or {}
        matching = (p for p in patterns if _match(rf"(.*\.)?({p})$", module))
        return patterns.get(next(matching, module), default)

    def _layer_selected(self, module: str) -> bool:
        layers = self.raw.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        patterns = self.raw.get("layers_pattern") or [r"[^.]*"]
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            index = _match(rf".*\.{pattern}\.(\d+)\.", module)
            if index:
                return int(index[1]) in ([layers] if isinstance(layers, int) else layers)
        return False


def _selects(patterns: str | list[str], module: str) -> bool:
    """Applies PEFT's rule: a string is a regular expression, a list holds names or their ends."""
    if isinstance(patterns, str):
        return _match(patterns, module, full=True) is not None
    return any(module == entry or module.endswith(f".{entry}") for entry in patterns)


PREFIX: Final = "base_model.model."  # of every tensor in the file


@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor of an adapter file and its place in ``Adapter.tensors``.

    Attributes:
        name: in the file.
        path: of the leaf: the parameter's path, with "a" or "b" for a low-rank pair.
        leaf_shape: of all layers together, as wide as the largest rank among them.
        index: place of the tensor in the leaf.
        layout: key of the layout table.
        shape: in the file.
        scale: of the pair; None for a tensor that replaces the parameter.
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
    """Returns every tensor of an adapter for this model.

    Raises:
        CheckpointError: the adapter changes nothing of this model, or a module to which no matrix
            product can be added; or it replaces only some layers of a stack; or it is too large.
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
    replaced = [
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
    table = [*_pairs(adapted, peft), *replaced]
    leaves = {slot.path: math.prod(slot.leaf_shape) for slot in table}
    check_bound("parameters", sum(leaves.values()), ADAPTER_CONFIG_NAME)
    return table


def modules(config: XVLAConfig, dialect: Dialect) -> set[str]:
    """Returns the names of the modules that hold parameters."""
    return {dialect.rename(row.torch).rpartition(".")[0] for row in rows(config)}


@functools.lru_cache(maxsize=8)  # tracing the model's shapes takes a second
def _tensors(config: XVLAConfig, dialect: Dialect) -> tuple[_Tensor, ...]:
    template, tensors = abstract_params(config), []
    for row in rows(config):
        leaf: Any = template
        for key in row.path:
            leaf = leaf[key]
        layout = "linear" if row.torch in dialect.transposed else row.layout
        name = dialect.rename(row.torch)
        tensors.append(_Tensor(name, row.path, row.layer, layout, leaf.shape))
    return tuple(tensors)


def _pairs(adapted: list[_Tensor], peft: PeftConfig) -> Iterator[Slot]:
    """Yields slots of A ``[..., in, r]`` and B ``[..., r, out]``.

    For a convolution, A is one with r channels and B a 1x1 convolution, so that the rule holds.
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
    """Returns the shape in the file; a broadcast zero takes no memory."""
    return LAYOUTS[layout].to_torch(np.broadcast_to(np.float32(0), shape)).shape
