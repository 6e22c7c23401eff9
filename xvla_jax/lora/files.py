"""Adapters on disk: folders that PEFT writes and reads, as X-VLA's are released.

A base and an adapter become one checkpoint by::

    loaded = pretrained.load_checkpoint(base)
    adapter = lora.load_adapter(folder, loaded.config)
    params = lora.merge_adapter(loaded.params, adapter)
    pretrained.save_pretrained(target, loaded.config, params, "hf", ...)
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from xvla_jax.actions import action_space
from xvla_jax.checkpoints.accounting import not_finite, refuse_not_finite, tensor_problems
from xvla_jax.checkpoints.folders import atomic_folder
from xvla_jax.checkpoints.names import DIALECTS, Dialect
from xvla_jax.checkpoints.peft import (
    ADAPTER_CONFIG_NAME,
    PREFIX,
    PeftConfig,
    Slot,
    modules,
    slots,
)
from xvla_jax.checkpoints.run_folder import on_disk
from xvla_jax.checkpoints.safetensors_files import (
    DTYPES,
    TensorFiles,
    TensorInfo,
    write_safetensors,
)
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import CheckpointError
from xvla_jax.lora.adapter import Adapter, fill_slots, read_slot, slot_scales
from xvla_jax.untrusted import shown

ADAPTER_WEIGHTS_NAME: Final = "adapter_model.safetensors"
ADAPTER_BIN_NAME: Final = "adapter_model.bin"  # of older versions of PEFT
# Metadata of the weights of an adapter that was trained with another action space than its base's.
_MODE: Final = "xvla_action_mode"
_REAL: Final = "xvla_real_action_dim"
_DELAY: Final = "xvla_rtc_max_delay"  # likewise, of one that was trained for other delays


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
    folder = on_disk(folder)
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
    delayed: bool = False,
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
        delayed: the training stated its delays, ``config.rtc_max_delay``, which are noted too.

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
    if delayed:
        metadata[_DELAY] = str(config.rtc_max_delay)

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
    noted = _tensors(on_disk(folder)).metadata
    if not {_MODE, _REAL} <= set(noted):
        return "", 0
    return noted[_MODE], _number(folder, noted, _REAL)


def adapter_delay(folder: str | os.PathLike[str]) -> int:
    """Reads the longest delay that an adapter was trained for; -1 where it is that of the base.

    Raises:
        CheckpointError: the folder has no tensors, or it is not a number.
    """
    noted = _tensors(on_disk(folder)).metadata
    return _number(folder, noted, _DELAY) if _DELAY in noted else -1


def _number(folder: str | os.PathLike[str], noted: Mapping[str, str], name: str) -> int:
    text = noted[name]
    if not (text.isascii() and text.isdecimal() and len(text) < 6):
        raise CheckpointError(f"{folder}: {name} in the metadata is {shown(text)}")
    return int(text)


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
