"""Digests of parameters, which compare two checkpoints without both of them in memory."""

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

_SAMPLE: Final = 4096  # values of a tensor that are kept, to estimate by how much it differs
_LISTED: Final = 10  # differing parameters that a report names


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Digest and sample of a parameter: they show that another differs, and roughly by how much."""

    digest: bytes
    sample: np.ndarray  # float32, spread evenly over the tensor; all values of a small one


def fingerprints(
    params: Mapping[str, Any], config: XVLAConfig, *, dtype: str
) -> dict[str, Fingerprint]:
    """Returns the fingerprint of every parameter, by its released name.

    Args:
        params: the tree.
        config: the model.
        dtype: type to which values are rounded first.
    """
    kind = DTYPES[STORED[dtype]]
    kept = {}
    for name, value in torch_tensors.iter_released(params, config):
        flat = np.ascontiguousarray(value, dtype=kind).reshape(-1)
        digest = hashlib.sha256(flat.view(np.uint8).data).digest()
        sample = flat[:: -(-flat.size // _SAMPLE)].astype(np.float32)
        kept[name] = Fingerprint(digest, sample)
    return kept


def params_digest(params: Mapping[str, Any], config: XVLAConfig) -> str:
    """Returns the SHA-256 of all parameters in float32; it does not depend on their layout."""
    total = hashlib.sha256()
    for name, kept in sorted(fingerprints(params, config, dtype="float32").items()):
        total.update(name.encode() + b"\0" + kept.digest)
    return total.hexdigest()


def compare_parameters(
    a: Mapping[str, Fingerprint], b: Mapping[str, Fingerprint]
) -> dict[str, Any]:
    """Counts the parameters that are equal bit for bit, and lists those that differ most.

    ``largest_difference`` is taken over the sampled values (all of a small tensor, else about
    4,000), so it is a lower bound.
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
