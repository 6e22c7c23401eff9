"""Parameters compared by digests of their values, without having both sides in memory."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from xvla_jax.checkpoints import torch_tensors
from xvla_jax.checkpoints.accounting import STORED
from xvla_jax.checkpoints.safetensors_files import DTYPES
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError

_SAMPLE: Final = 4096  # values of a tensor that are kept to tell by how much it differs
_LISTED: Final = 10  # differing parameters that a report names


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What is kept of a parameter: enough to see that another differs, and roughly by how much."""

    digest: bytes
    sample: np.ndarray  # float32, spread over the tensor; a small tensor whole


def fingerprints(
    params: Mapping[str, Any], config: XVLAConfig, *, dtype: str
) -> dict[str, Fingerprint]:
    """Of every parameter, by its released name.

    Args:
        params: the tree.
        config: the model.
        dtype: type to which values are rounded first.
    """
    kind = DTYPES[STORED[dtype]]
    found = {}
    for name, value in torch_tensors.iter_released(params, config):
        flat = np.ascontiguousarray(value, dtype=kind).reshape(-1)
        digest = hashlib.sha256(flat.view(np.uint8).data).digest()
        sample = flat[:: -(-flat.size // _SAMPLE)].astype(np.float32)
        found[name] = Fingerprint(digest, sample)
    return found


def params_digest(params: Mapping[str, Any], config: XVLAConfig) -> str:
    """SHA-256 of all parameters in float32, whatever layout they were stored in."""
    total = hashlib.sha256()
    for name, found in sorted(fingerprints(params, config, dtype="float32").items()):
        total.update(name.encode() + b"\0" + found.digest)
    return total.hexdigest()


def compare_parameters(
    a: Mapping[str, Fingerprint], b: Mapping[str, Fingerprint]
) -> dict[str, Any]:
    """How many parameters are equal bit for bit, and the names that differ most.

    ``largest_difference`` is that among the values kept (all of a small tensor, else about 4,000),
    a lower bound.
    """
    if set(a) != set(b):
        raise ConfigError(f"parameters of one side only: {sorted(set(a) ^ set(b))[:_LISTED]}")
    differing = []
    for name, ours in a.items():
        if ours.digest != b[name].digest:
            difference = np.abs(ours.sample.astype(np.float64) - b[name].sample)
            differing.append(
                {
                    "name": name,
                    "largest_difference": float(np.nan_to_num(difference, nan=np.inf).max()),
                    "largest_value": float(np.abs(ours.sample).max()),
                }
            )
    differing.sort(key=lambda entry: -entry["largest_difference"])
    return {
        "compared": len(a),
        "equal": len(a) - len(differing),
        "differing": len(differing),
        "most_different": differing[:_LISTED],
    }
