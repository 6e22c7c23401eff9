"""One domain as a file: a soft prompt and its projections, a few hundred kB of safetensors.

Tensors are named ``soft_prompts`` ``[P, M]``, ``action_encoder/kernel`` ``[in, out]``,
``action_encoder/bias`` and so on, float32: the domain's rows of the tables of that name. The
metadata hold JSON: the action contract, the shape of the model, and where the domain came from.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from xvla_jax.actions import action_space
from xvla_jax.checkpoint_tools.domains import Rows, backbone_digest, read_notes, read_rows
from xvla_jax.checkpoints.accounting import not_finite, refuse_not_finite
from xvla_jax.checkpoints.hf_folder import Pretrained
from xvla_jax.checkpoints.safetensors_files import TensorFiles, TensorInfo, write_safetensors
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract
from xvla_jax.errors import CheckpointError
from xvla_jax.untrusted import parse_json, typed_map

_FORMAT: Final = "xvla-domain-1"


@dataclasses.dataclass(frozen=True)
class DomainFile:
    """A domain apart from its checkpoint.

    Attributes:
        rows: by table.
        contract: None where the checkpoint did not say.
        model: what of a model a domain depends on, by name.
        provenance: checkpoint, domain id there, digest of the weights it was trained with, and the
            domain's own note.
    """

    rows: Rows
    contract: Contract | None
    model: Mapping[str, Any]
    provenance: Mapping[str, Any]


def model_shape(config: XVLAConfig) -> dict[str, Any]:
    """What of a model a domain depends on."""
    space = action_space(config)
    return {
        "action_space": space.mode,
        "action_width": space.width,
        "real_action_width": space.real_width,
        "num_actions": config.num_actions,
        "hidden_size": config.hidden_size,
        "len_soft_prompts": config.len_soft_prompts,
        "dim_time": config.dim_time,
        "use_hetero_proj": config.use_hetero_proj,
    }


def export_domain(loaded: Pretrained, domain_id: int, *, source: str) -> DomainFile:
    """A domain of a checkpoint; ``source`` says which, for the reader.

    Raises:
        ConfigError: the model has no such domain.
        CheckpointError: it holds values that are not finite.
    """
    rows = read_rows(loaded, domain_id)
    refuse_not_finite({name: not_finite(row) for name, row in rows.items()})
    provenance = {
        "checkpoint": source,
        "domain_id": domain_id,
        "backbone_sha256": backbone_digest(loaded),
        "note": read_notes(loaded).get(str(domain_id), {}),
    }
    contract = loaded.contracts.get(domain_id)
    return DomainFile(rows, contract, model_shape(loaded.config), provenance)


def write_domain(path: str | os.PathLike[str], domain: DomainFile) -> None:
    """Writes a file, whole or not at all.

    Raises:
        CheckpointError: the file exists.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise CheckpointError(f"{path} exists; give another name or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": _FORMAT,
        "contract": json.dumps(domain.contract.to_dict() if domain.contract else None),
        "model": json.dumps(domain.model),
        "provenance": json.dumps(domain.provenance),
    }
    info = {name: TensorInfo.of(row) for name, row in domain.rows.items()}
    write_safetensors(path, info, domain.rows.__getitem__, metadata=metadata)


def read_domain(path: str | os.PathLike[str]) -> DomainFile:
    """Inverse of `write_domain`.

    Raises:
        CheckpointError: the file is missing, damaged, or of another kind.
    """
    files = TensorFiles.open(path)
    found = files.metadata.get("format")
    if found != _FORMAT:
        raise CheckpointError(
            f"{path}: its metadata say format {found!r}, a domain's file says {_FORMAT!r}"
        )
    try:
        contract, model, provenance = (
            parse_json(files.metadata[key]) for key in ("contract", "model", "provenance")
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata cannot be read ({error!r})") from error
    known = None if contract is None else Contract.from_dict(contract, path)
    typed_map(model, path, "model")
    typed_map(provenance, path, "provenance")
    rows = {name: np.array(files.read(name), np.float32) for name in files.info}
    refuse_not_finite({name: not_finite(row) for name, row in rows.items()})
    return DomainFile(rows, known, model, provenance)


def check_fits(domain: DomainFile, config: XVLAConfig) -> None:
    """Refuses a domain of a model of another shape, all differences at once."""
    ours = model_shape(config)
    if "real_action_width" not in domain.model:  # files from before it was noted
        del ours["real_action_width"]
    differing = [
        f"{name} is {domain.model.get(name)!r} in the file and {value!r} here"
        for name, value in ours.items()
        if domain.model.get(name) != value
    ]
    if differing:
        raise CheckpointError("the domain is of a model of another shape: " + "; ".join(differing))
