"""LoRA adapters: low-rank tensors beside the parameters, merged by path.

An adapter's tensors form a tree like the parameters' own. At a changed leaf it holds either a pair
``{"a", "b"}``, for ``W + scale * a @ b``, or a new leaf. Its paths begin with the parameters'
paths, so the optimizer's path table covers it. `apply_adapter` works inside a jitted step.

On disk an adapter is a PEFT folder, as X-VLA's are released, or the steps of a LoRA run (see
``xvla_jax/pretrained.py``). A base and an adapter become one checkpoint by::

    loaded = pretrained.load_checkpoint(base)
    adapter = lora.load_adapter(folder, loaded.config)
    params = lora.merge_adapter(loaded.params, adapter)
    pretrained.save_pretrained(target, loaded.config, params, "hf", ...)
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from xvla_jax.actions import action_space
from xvla_jax.checkpoints.accounting import not_finite, refuse_not_finite, tensor_problems
from xvla_jax.checkpoints.folders import atomic_folder
from xvla_jax.checkpoints.names import DIALECTS, LAYOUTS, Dialect, Path
from xvla_jax.checkpoints.peft import (
    ADAPTER_CONFIG_NAME,
    ALL_LINEAR,
    PREFIX,
    PeftConfig,
    Slot,
    modules,
    slots,
)
from xvla_jax.checkpoints.safetensors_files import (
    DTYPES,
    StoredLeaf,
    TensorFiles,
    TensorInfo,
    write_safetensors,
)
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import CheckpointError, ConfigError
from xvla_jax.untrusted import shown

# Modules that X-VLA's LoRA recipe trains in full, by PyTorch name.
RELEASED_MODULES_TO_SAVE: Final = (
    "transformer.soft_prompt_hub",
    "transformer.action_encoder",
    "transformer.action_decoder",
)

MERGE_SCOPE: Final = "merge_adapter"  # of `apply_adapter` in the names of a program's operations

ADAPTER_WEIGHTS_NAME: Final = "adapter_model.safetensors"
ADAPTER_BIN_NAME: Final = "adapter_model.bin"  # of older versions of PEFT
# Metadata of the weights of an adapter that was trained with another action space than its base's.
_MODE: Final = "xvla_action_mode"
_REAL: Final = "xvla_real_action_dim"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Adapter to train in place of the parameters; the defaults are X-VLA's recipe.

    Attributes:
        rank: columns of A.
        alpha: the pairs are scaled by ``alpha / rank``.
        dropout: only 0: PEFT drops inputs of the pair alone, which merged weights cannot express.
        target_modules: "all-linear", a regular expression over the released module names, or such
            names or their ends.
        modules_to_save: modules that are trained in full, by released name or its end.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = ALL_LINEAR
    modules_to_save: tuple[str, ...] = RELEASED_MODULES_TO_SAVE

    def __post_init__(self) -> None:
        """Refuses a rank below 1 and dropout, with a ConfigError."""
        if self.rank < 1:
            raise ConfigError(f"config.lora.rank is {self.rank}; 1 or more, or 0 for no adapter")
        if self.dropout:
            raise ConfigError(
                f"config.lora.dropout is {self.dropout}; only 0 is possible, as in X-VLA's recipe: "
                "the adapter is merged into the weights, which have no input of its own to drop"
            )

    def peft(self, base: str | None = None) -> PeftConfig:
        """Returns the content of ``adapter_config.json``, which names ``base`` for its readers."""
        targets = self.target_modules
        return PeftConfig(
            {
                "base_model_name_or_path": base,
                "bias": "none",
                "fan_in_fan_out": False,
                "inference_mode": True,
                "init_lora_weights": True,
                "lora_alpha": self.alpha,
                "lora_dropout": self.dropout,
                "modules_to_save": list(self.modules_to_save),
                "peft_type": "LORA",
                "r": self.rank,
                "target_modules": targets if isinstance(targets, str) else list(targets),
                "task_type": None,
            }
        )


@dataclasses.dataclass(frozen=True)
class Adapter:
    """A change of a model's parameters.

    Attributes:
        tensors: tree of float32 arrays; ``a [..., in, r]`` and ``b [..., r, out]``, stacked like
            their parameter. Layers that are not adapted, and columns beyond a layer's own rank, are
            zero in both, so their gradients are zero too.
        scales: by path of the changed parameter, ``float32[]`` or ``float32[layers, 1, 1]``.
        peft: the adapter's config, with all its fields.
        dialect: of the file's tensor names, a key of ``xvla_jax.checkpoints.names.DIALECTS``.
        dtypes: safetensors' name of the stored type, by name in the file; float32 if absent.
    """

    tensors: dict[str, Any]
    scales: Mapping[Path, np.ndarray]
    peft: PeftConfig
    dialect: str
    dtypes: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)


# TPUs round float32 factors to bfloat16 at any lower precision.
_product = functools.partial(jnp.matmul, precision="highest")


def apply_adapter(
    params: Mapping[str, Any],
    tensors: Mapping[str, Any],
    scales: Mapping[Path, Any],
    *,
    product: Callable[[Any, Any], Any] = _product,
    dtype: Any = np.float32,
) -> dict[str, Any]:
    """Returns the parameters with an adapter's tensors merged; the originals stay unchanged.

    Args:
        params: the base's parameters; leaves that do not change are passed on, not copied.
        tensors: see `Adapter`; may be traced.
        scales: see `Adapter`.
        product: matrix product with batch axes.
        dtype: of the matrices that change by a pair. With the model's computing type, to which the
            model casts them anyway, the merged copy and its gradient are smallest.

    Raises:
        CheckpointError: the adapter changes a parameter that is not there or has another shape.
    """

    def merge(leaf: Any, change: Any, path: Path) -> Any:
        if not isinstance(change, Mapping):
            return change
        return (leaf + product(scales[path] * change["a"], change["b"])).astype(dtype)

    with jax.named_scope(MERGE_SCOPE):
        return _merged(params, tensors, merge)


def merge_adapter(params: Mapping[str, Any], adapter: Adapter) -> dict[str, Any]:
    """Merges an adapter on the host, for a merged checkpoint.

    A leaf on disk (`StoredLeaf`) stays there, and is read and merged when it is used.
    """

    def value(leaf: Any, change: Any, scale: Any, layer: int | None) -> np.ndarray:
        if layer is not None:
            leaf, scale = leaf[layer], scale[layer]
            change = {name: factor[layer] for name, factor in change.items()}
        return np.asarray(leaf) + np.matmul(scale * change["a"], change["b"])

    def merge(leaf: Any, change: Any, path: Path) -> Any:
        if not isinstance(change, Mapping):
            return change
        merged = functools.partial(value, leaf, change, adapter.scales[path])
        return StoredLeaf(leaf.shape, merged) if isinstance(leaf, StoredLeaf) else merged(None)

    return _merged(params, adapter.tensors, merge)


def _merged(
    params: Mapping[str, Any],
    tensors: Mapping[str, Any],
    merge: Callable[[Any, Any, Path], Any],
) -> dict[str, Any]:
    """Returns ``merge(leaf, change, path)`` where there is a change, the leaf itself elsewhere."""

    def visit(node: Any, change: Any, path: Path) -> Any:
        where = "/".join(path)
        if not isinstance(node, Mapping):
            pair = isinstance(change, Mapping)
            shape = (*change["a"].shape[:-1], change["b"].shape[-1]) if pair else change.shape
            if shape != node.shape:
                raise CheckpointError(
                    f"the adapter's {where} is {list(shape)}, the base's {list(node.shape)}: "
                    "it was trained on another base"
                )
            return merge(node, change, path)
        strange = sorted(change.keys() - node.keys())
        if strange:
            raise CheckpointError(
                f"the adapter changes {strange} of {where or 'the model'}, which has "
                f"{sorted(node)}: it was trained on another base"
            )
        return {
            key: visit(child, change[key], (*path, key)) if key in change else child
            for key, child in node.items()
        }

    return visit(params, tensors, ())


def abstract_adapter(config: XVLAConfig, peft: PeftConfig) -> Adapter:
    """Returns an adapter of a model with shapes in place of tensors.

    Raises:
        CheckpointError: the model has no module that the adapter names.
    """
    table = slots(config, peft, DIALECTS["hf"])
    shapes = {slot.path: jax.ShapeDtypeStruct(slot.leaf_shape, np.float32) for slot in table}
    return Adapter(unflatten_dict(shapes), slot_scales(table), peft, "hf")


def init_adapter(
    params: Mapping[str, Any], config: XVLAConfig, peft: PeftConfig, *, seed: int
) -> Adapter:
    """Returns a new adapter, which changes nothing: A is random, B zero, full leaves are copies.

    A is uniform within ``1 / sqrt(in)``, as in PEFT.

    Args:
        params: of the base.
        config: of the base.
        peft: the adapter's config, from `LoraConfig.peft`.
        seed: of A.

    Raises:
        CheckpointError: the base has no module that the adapter names.
    """
    rng = np.random.default_rng(seed)

    def value(slot: Slot) -> np.ndarray:
        if slot.scale is None:
            return read_slot(params, slot)
        if slot.path[-1] == "b":
            return np.zeros(slot.shape, np.float32)
        bound = float(np.prod(slot.shape[1:])) ** -0.5  # fan in: PyTorch's shape is [out, in]
        return rng.uniform(-bound, bound, slot.shape).astype(np.float32)

    table = slots(config, peft, DIALECTS["hf"])
    return Adapter(fill_slots(table, value), slot_scales(table), peft, "hf")


def fill_slots(table: Iterable[Slot], value: Callable[[Slot], np.ndarray]) -> dict[str, Any]:
    """Builds ``Adapter.tensors`` from the tensors of a file, which ``value`` returns."""
    leaves: dict[Path, np.ndarray] = {}
    for slot in table:
        if slot.path not in leaves:
            leaves[slot.path] = np.zeros(slot.leaf_shape, np.float32)
        view = leaves[slot.path][slot.index]
        view[...] = LAYOUTS[slot.layout].to_jax(value(slot).astype(np.float32), view.shape)
    return unflatten_dict(leaves)


def slot_scales(table: Iterable[Slot]) -> dict[Path, np.ndarray]:
    """Builds ``Adapter.scales``."""
    scales: dict[Path, np.ndarray] = {}
    for slot in table:
        if slot.scale is not None:
            layer = slot.index[0]  # an integer where layers are stacked
            stacked = layer is not ...
            empty = np.zeros((slot.leaf_shape[0], 1, 1) if stacked else (), np.float32)
            scales.setdefault(slot.path[:-1], empty)[layer] = slot.scale
    return scales


def read_slot(tensors: Mapping[str, Any], slot: Slot) -> np.ndarray:
    """Returns the tensor of a slot in the file's layout, in float32."""
    node: Any = tensors
    for key in slot.path:
        node = node[key]
    return LAYOUTS[slot.layout].to_torch(np.asarray(node, dtype=np.float32)[slot.index])


def load_adapter(folder: str | os.PathLike[str], config: XVLAConfig) -> Adapter:
    """Reads a PEFT folder, in the names of X-VLA's release or of either LeRobot layout.

    Args:
        folder: has ``adapter_config.json`` and ``adapter_model.safetensors``, or ``.bin``.
        config: of its base.

    Raises:
        CheckpointError: it is no adapter, one of a kind that is not supported, one for another
            base (all tensors at fault are listed) or action space, or has values that are not
            finite.
    """
    folder = pathlib.Path(folder)
    peft = PeftConfig.read(folder)
    files = _tensors(folder)
    _check_action_space(folder, config)
    stored: dict[str, str] = {}
    for name in files.info:
        if stored.setdefault(_plain(name), name) != name:
            raise CheckpointError(f"{folder}: {_plain(name)} is stored twice, also as {name}")
    dialect = _nearest_dialect(stored, config)
    table = slots(config, peft, dialect)
    info = {name: files.info[source] for name, source in stored.items()}
    _account(folder, peft, dialect, table, info)

    bad: dict[str, int] = {}

    def value(slot: Slot) -> np.ndarray:
        tensor = files.read(stored[slot.name])
        bad[slot.name] = not_finite(tensor)
        return tensor

    tensors = fill_slots(table, value)
    refuse_not_finite(bad)
    dtypes = {name: tensor.dtype for name, tensor in info.items()}
    return Adapter(tensors, slot_scales(table), peft, dialect.name, dtypes)


def save_adapter(
    folder: str | os.PathLike[str],
    adapter: Adapter,
    config: XVLAConfig,
    *,
    overwrite: bool = False,
    relabelled: bool = False,
) -> None:
    """Writes a folder that PEFT loads onto the original X-VLA; it appears complete or not at all.

    An adapter that PEFT saved is written byte for byte as it was. A trained one is
    ``dataclasses.replace(adapter, tensors=...)``.

    Args:
        folder: must not exist, or be empty, unless ``overwrite``.
        adapter: to write.
        config: of its base.
        overwrite: replace the folder, once the new one is complete.
        relabelled: the base had another action space than ``config``, which is noted beside the
            tensors.

    Raises:
        CheckpointError: the folder is in use, or a value is not finite.
    """
    table = {slot.name: slot for slot in slots(config, adapter.peft, DIALECTS[adapter.dialect])}
    info = {
        name: TensorInfo(adapter.dtypes.get(name, "F32"), slot.shape)
        for name, slot in table.items()
    }

    metadata = {"format": "pt"}
    if relabelled:
        space = action_space(config)
        metadata |= {_MODE: space.mode, _REAL: str(space.real_width)}

    def read(name: str) -> np.ndarray:
        value = read_slot(adapter.tensors, table[name]).astype(DTYPES[info[name].dtype])
        refuse_not_finite({name: not_finite(value)})
        return value

    with atomic_folder(folder, overwrite=overwrite) as scratch:
        write_safetensors(scratch / ADAPTER_WEIGHTS_NAME, info, read, metadata=metadata)
        text = json.dumps(dict(adapter.peft.raw), indent=2, sort_keys=True)  # as PEFT writes it
        (scratch / ADAPTER_CONFIG_NAME).write_text(text)


def adapter_space(folder: str | os.PathLike[str]) -> tuple[str, int]:
    """Reads the action space that an adapter was trained with.

    Returns:
        Its name and the channels of a robot's action; ``("", 0)`` where it is that of the base.

    Raises:
        CheckpointError: the folder has no tensors, or the channels are not a number.
    """
    noted = _tensors(pathlib.Path(folder)).metadata
    if not {_MODE, _REAL} <= set(noted):
        return "", 0
    if not (noted[_REAL].isascii() and noted[_REAL].isdecimal() and len(noted[_REAL]) < 6):
        raise CheckpointError(f"{folder}: {_REAL} in the metadata is {shown(noted[_REAL])}")
    return noted[_MODE], int(noted[_REAL])


def _tensors(folder: pathlib.Path) -> TensorFiles:
    """Opens the tensors of an adapter; older versions of PEFT write a .bin file."""
    in_bin = (folder / ADAPTER_BIN_NAME).is_file() and not (folder / ADAPTER_WEIGHTS_NAME).is_file()
    return TensorFiles.open(folder / (ADAPTER_BIN_NAME if in_bin else ADAPTER_WEIGHTS_NAME))


def _check_action_space(folder: pathlib.Path, config: XVLAConfig) -> None:
    mode, real = adapter_space(folder)
    space = action_space(config)
    if mode and (mode, real) != (space.mode, space.real_width):
        raise CheckpointError(
            f"{folder}: the adapter was trained with action space {mode!r} ({real} channels), this "
            f"base has {space.mode!r} ({space.real_width}); python -m scripts.convert_checkpoint "
            f"BASE DST --layout=hf --adapter={folder} relabels it and merges them"
        )


def _plain(name: str) -> str:
    """Returns the name under which PEFT saves a tensor; a ``state_dict`` has longer ones."""
    name = re.sub(r"\.modules_to_save(\.default)?\.", ".", name)
    return re.sub(r"\.(lora_[AB])\.default\.", r".\1.", name)


def _nearest_dialect(names: Iterable[str], config: XVLAConfig) -> Dialect:
    """Returns the dialect that has most of the modules that the tensors belong to."""
    named = {re.sub(r"(\.lora_[AB])?\.\w+$", "", name.removeprefix(PREFIX)) for name in names}
    return max(DIALECTS.values(), key=lambda dialect: len(named & modules(config, dialect)))


def _account(
    folder: pathlib.Path,
    peft: PeftConfig,
    dialect: Dialect,
    table: list[Slot],
    info: Mapping[str, TensorInfo],
) -> None:
    """Refuses tensors that are missing, unused, or not of the shape that model and rank imply."""
    problems = tensor_problems(info, {slot.name: slot.shape for slot in table})
    if problems:
        raise CheckpointError(
            f"{folder}: the adapter (base: {peft.base}; {dialect.name} names) does not fit this "
            f"model and its {ADAPTER_CONFIG_NAME}; {len(problems)} tensors differ:\n  "
            + "\n  ".join(problems)
        )
