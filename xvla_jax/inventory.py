"""What two checkpoints hold, compared without having both in memory.

Stored tensors are accounted for by name, and configs compared field by field; for parameters see
``fingerprints``.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Final

import jax
import numpy as np

from xvla_jax.actions import action_space
from xvla_jax.checkpoints.names import BUFFERS, EMBED_TOKENS, SHARED, detect_dialect, rows
from xvla_jax.checkpoints.safetensors_files import DTYPES, TensorFiles
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import CheckpointError, ConfigError
from xvla_jax.formats.lora_step import ADAPTER
from xvla_jax.models.xvla import abstract_params
from xvla_jax.pretrained import ORBAX
from xvla_jax.training import checkpointer

# Fields that say nothing about what a trained model computes.
_TRAINING_ONLY: Final = frozenset(
    {
        "text.activation_dropout",
        "text.attention_dropout",
        "text.dropout",
        "text.encoder_layerdrop",
        "text.pad_token_id",  # its row of the token table takes no gradient
        "vision.drop_path_rate",
        "vision.max_temporal_embeddings",  # rows of a fixed table; only row 0 is read
    }
)
# Width and channels are compared as the action space that these two and the mode make.
_ACTION_FIELDS: Final = frozenset({"action_mode", "real_action_dim", "max_action_dim"})


@dataclasses.dataclass(frozen=True)
class Inventory:
    """The stored tensors of a checkpoint, by what they are.

    Attributes:
        folder: where it is.
        layout: ``hf``, one of LeRobot's, or ``orbax``.
        config: the model.
        dtypes: types that the parameters are or, in Orbax, were stored in, and how many of each.
        parameters: stored tensors that are parameters.
        values: numbers in them.
        buffers: stored names that are no parameters.
        aliases: second names of a parameter.
        unused: names that nothing reads.
    """

    folder: str
    layout: str
    config: XVLAConfig
    dtypes: Mapping[str, int]
    parameters: int
    values: int
    buffers: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without the config."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["config"]
        return fields


def take_inventory(folder: str | os.PathLike[str]) -> Inventory:
    """Reads names, types and shapes; no values.

    Raises:
        CheckpointError, ConfigError: nothing usable is there.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    step = checkpointer.find_step(folder)
    if step is not None:
        item = checkpointer.read_model(step)
        if ADAPTER in item:
            raise CheckpointError(
                f"{step} is of a LoRA run: it holds an adapter alone; merge it first, with "
                f"python -m scripts.convert_checkpoint {folder} DST --layout=hf"
            )
        config = XVLAConfig.from_dict(item["config"])
        source = item.get("source", {})
        dtype = source.get("stored_dtype", "float32")
        leaves = jax.tree.leaves(abstract_params(config))
        values = sum(leaf.size for leaf in leaves)
        return Inventory(
            folder=str(folder),
            layout=ORBAX,
            config=config,
            dtypes={dtype: len(leaves)},
            parameters=len(leaves),
            values=values,
            buffers=tuple(sorted(source.get("buffers", {}))),
        )
    config = XVLAConfig.read(folder)
    files = TensorFiles.open(folder)
    dialect = detect_dialect(set(files.info))
    tied = [dialect.rename(name) for name in (SHARED, EMBED_TOKENS)]
    names = {dialect.rename(row.torch) for row in rows(config)} | set(tied)
    parameters = sorted(names & set(files.info))
    aliases = tied[1:] if set(tied) <= set(files.info) else []
    buffers = sorted({dialect.rename(name) for name in BUFFERS} & set(files.info))
    kinds = [DTYPES[files.info[name].dtype].name for name in parameters]
    return Inventory(
        folder=str(folder),
        layout=dialect.name,
        config=config,
        dtypes={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        parameters=len(parameters) - len(aliases),
        values=sum(int(np.prod(files.info[n].shape)) for n in parameters if n not in aliases),
        buffers=tuple(buffers),
        aliases=tuple(aliases),
        unused=tuple(sorted(set(files.info) - set(parameters) - set(buffers))),
    )


def config_differences(a: XVLAConfig, b: XVLAConfig) -> dict[str, tuple[Any, Any]]:
    """Fields of ``config.json`` that differ, by dotted name, with both values.

    Raises:
        ConfigError: the two describe different models; all fields that make it so are named.
    """
    fields_a, fields_b = _model_fields(a), _model_fields(b)
    other = {k: (fields_a[k], fields_b[k]) for k in fields_a if fields_a[k] != fields_b[k]}
    essential = {k: v for k, v in other.items() if k not in _TRAINING_ONLY}
    if essential:
        raise ConfigError(
            "the two checkpoints are of different models; "
            + "; ".join(f"{k}: {x!r} and {y!r}" for k, (x, y) in essential.items())
        )
    written_a, written_b = _flat(a.to_dict()), _flat(b.to_dict())
    return {
        k: (written_a.get(k), written_b.get(k))
        for k in sorted(written_a.keys() | written_b.keys())
        if written_a.get(k) != written_b.get(k)
    }


def _model_fields(config: XVLAConfig) -> dict[str, Any]:
    values = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(config)
        if f.name not in ("vision", "text", "extra", *_ACTION_FIELDS)
    }
    for part in ("vision", "text"):
        nested = dataclasses.asdict(getattr(config, part))
        values |= {f"{part}.{name}": value for name, value in nested.items()}
    space = action_space(config)
    return values | {
        "action_mode": space.mode,
        "width of actions": space.width,
        "real width of actions": space.real_width,
    }


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= _flat(inner, f"{prefix}{key}.")
        else:
            flat[prefix + key] = inner
    return flat
