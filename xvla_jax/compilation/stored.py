"""Lowered programs and shapes beside the compiled programs, so that no model is traced again.

Tracing and lowering the policy take a process longer than reading its compiled program, and tracing
the shapes of its parameters a second. What was lowered is stored with ``jax.export``, shapes as
JSON, in the folder of compiled programs, which is this user's own; a checkpoint's folder would
bring programs of others with it. The name of a file is the digest of all that decides its content:
what the caller states, the shapes, versions and settings of JAX and Flax, and this library's
source. So a file is never stale, only unused; one that is damaged is made again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import pathlib
import secrets
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, Final

import jax
import jax.numpy as jnp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export

from xvla_jax.compilation.program_cache import folder_in_use

_PROGRAM: Final = "-lowered"  # ends of names
_SHAPES: Final = "-shapes"
_PACKAGES: Final = ("jax", "jaxlib", "flax")  # that decide what is traced
_SETTINGS: Final = (
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_enable_x64",
    "jax_threefry_partitionable",
)
_DIGEST_BYTES: Final = 32  # in front of the content

_log = logging.getLogger(__name__)


def lower_stored(
    function: Callable[..., Any], *arguments: Any, identity: Mapping[str, Any]
) -> jax.stages.Lowered:
    """Lowers a function of arrays for the default device, or reads what was lowered before.

    Args:
        function: is traced where no file is there.
        arguments: shapes, as ``jax.eval_shape`` gives them.
        identity: plain JSON values that decide the function, such as a config and a type.
    """
    folder = folder_in_use()
    if folder is None:
        return jax.jit(function).lower(*arguments)
    path = epath.Path(folder) / f"{_digest(arguments, identity)}{_PROGRAM}"
    program = _read(path)
    if program is None:
        exported = export.export(jax.jit(function))(*arguments)
        _write(path, bytes(exported.serialize()))
    else:
        exported = export.deserialize(bytearray(program))
    # The stored form in either case, so that the first process runs what all later ones run.
    return jax.jit(exported.call).lower(*arguments)


def stored_shapes(trace: Callable[[], dict[str, Any]], identity: Mapping[str, Any]) -> Any:
    """Returns a nested dict of ``jax.ShapeDtypeStruct``, traced or as traced before.

    Args:
        trace: makes it where no file is there.
        identity: see `lower_stored`.
    """
    folder = folder_in_use()
    if folder is None:
        return trace()
    path = epath.Path(folder) / f"{_digest((), identity)}{_SHAPES}"
    content = _read(path)
    if content is None:
        shapes = trace()
        leaves: Any = flatten_dict(shapes)  # names -> leaf
        rows = [[*names, str(leaf.dtype), list(leaf.shape)] for names, leaf in leaves.items()]
        _write(path, json.dumps(rows).encode())
        return shapes
    rows = json.loads(content)
    return unflatten_dict(
        {
            tuple(names): jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
            for *names, dtype, shape in rows
        }
    )


def _digest(arguments: Any, identity: Mapping[str, Any]) -> str:
    leaves, tree = jax.tree.flatten(arguments)
    settings: Any = jax.config
    parts = {
        **identity,
        "shapes": [f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves],
        "tree": str(tree),
        "versions": [version(package) for package in _PACKAGES],
        "backend": jax.default_backend(),
        "source": _source_digest(),
        "settings": [str(getattr(settings, name)) for name in _SETTINGS],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@functools.cache
def _source_digest() -> str:
    """Returns the digest of this library's source."""
    root, digest = pathlib.Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def _read(path: epath.Path) -> bytes | None:
    """Returns the content of a file; None where there is none, or a damaged one, which goes."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("%s cannot be read and is made again: %s", path, error)
        return None
    digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() == digest:
        return content
    _log.warning("%s is damaged and is made again", path)
    path.unlink(missing_ok=True)
    return None


def _write(path: epath.Path, content: bytes) -> None:
    # Another process may read meanwhile, or write, also one of another host with this number.
    scratch = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        scratch.write_bytes(hashlib.sha256(content).digest() + content)
        scratch.replace(path)
    except OSError as error:  # a full disk costs time at the next start, not this one
        _log.warning("%s is not kept: %s", path, error)
        scratch.unlink(missing_ok=True)
