"""Work, HBM traffic and roofline of a part of the released model, forward and backward.

``python -m benchmarks.blocks --part=head [--topology=v5p:2x2x1] [--remat=named] [--samples=16]
[--attention=xla --attention=fused]``

Compiles the part's gradients for one chip of a slice, in bfloat16 over float32 masters: minutes,
where the complete step takes hours on a busy machine. Nothing is run. Parts: ``head``, and
``windows`` and ``channels``, a block of the vision tower's ``--stage``, on a map with ``--noflat``.
Prints a table by pass and kind for each form of attention, and the cycles that the compiler
estimates, which leave out those of kernels. Needs libtpu: ``bash scripts/setup.sh tpu``.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from configs import models
from xvla_jax.config import XVLAConfig
from xvla_jax.models.davit import Block, ChannelAttention, WindowAttention
from xvla_jax.models.kernels import ATTENTION
from xvla_jax.models.layers import REMAT, rematerialised
from xvla_jax.models.soft_transformer import SoftPromptedTransformer
from xvla_jax.planning.chips import GIB, Slice, describe
from xvla_jax.planning.hlo import Module, parse
from xvla_jax.planning.traffic import by_stage, estimate
from xvla_jax.sharding import MESH_AXES

Array = jax.Array
# A module, its method, and the shapes of the operands; the first takes a gradient.
Part = tuple[nn.Module, Callable[..., Any], list[jax.ShapeDtypeStruct]]

_CONFIG: Final = XVLAConfig.from_dict(models.model_dict(models.RELEASED, action_mode="ee6d"))
_DTYPE: Final = jnp.bfloat16
_VIEWS, _TOKENS, _WIDTH = 3, 50, 20  # tokens of an image, and of the text; numbers of an action
_SIDE = 56  # cells of the first stage's map


def _head(samples: int, attention: str) -> Part:
    module = SoftPromptedTransformer(
        _CONFIG, _WIDTH, remat=_REMAT.value, attention=attention, dtype=_DTYPE
    )
    width, actions = _CONFIG.vision.projection_dim, _CONFIG.num_actions

    def denoise(head: Any, vlm: Array, aux: Array, chunk: Array, domain: Array, t: Array) -> Array:
        context = head.prepare(vlm, aux, domain)
        return head(context, chunk, chunk[:, 0], domain, t, train=True)

    shapes = [
        jax.ShapeDtypeStruct((samples, 2 * _TOKENS, width), _DTYPE),
        jax.ShapeDtypeStruct((samples, (_VIEWS - 1) * _TOKENS, width), _DTYPE),
        jax.ShapeDtypeStruct((samples, actions, _WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((samples,), jnp.int32),
        jax.ShapeDtypeStruct((samples,), jnp.float32),
    ]
    return module, denoise, shapes


def _block(samples: int, attention: str, *, kind: str) -> Part:
    stage, c = _STAGE.value, _CONFIG.vision
    inside = {
        "windows": functools.partial(WindowAttention, c.num_heads[stage], c.window_size, attention),
        "channels": functools.partial(ChannelAttention, c.num_groups[stage], _FLAT.value),
    }[kind]
    block = rematerialised(Block, _REMAT.value, scanned=False)
    module = block(inside, c.drop_path_rate, _FLAT.value, dtype=_DTYPE)
    side = _SIDE >> stage
    shape = (samples * _VIEWS, side, side, c.dim_embed[stage])
    return module, lambda block, x: block(x, True), [jax.ShapeDtypeStruct(shape, _DTYPE)]


_PARTS: Final[Mapping[str, Callable[[int, str], Part]]] = {
    "head": _head,
    "windows": functools.partial(_block, kind="windows"),
    "channels": functools.partial(_block, kind="channels"),
}
_TOPOLOGY = flags.DEFINE_string("topology", "v5p:2x2x1", "TPU slice; one chip of it is used.")
_PART = flags.DEFINE_enum("part", None, list(_PARTS), "Part of the model.", required=True)
_REMAT = flags.DEFINE_enum("remat", "full", list(REMAT), "Row of layers.REMAT.")
_SAMPLES = flags.DEFINE_integer("samples", 16, "Samples on the chip, of 3 views.", lower_bound=1)
_STAGE = flags.DEFINE_integer("stage", 2, "Stage of the tower.", lower_bound=0, upper_bound=3)
_ATTENTION = flags.DEFINE_multi_enum(
    "attention", ["xla"], list(ATTENTION), "Row of kernels.ATTENTION; several are compared."
)
_FLAT = flags.DEFINE_bool("flat", True, "See davit.Block.")


def lower(devices: Any, attention: str = "xla") -> jax.stages.Lowered:
    """Lowers the part's gradients, by its parameters and first operand, for the first device."""
    module, method, operands = _PARTS[_PART.value](_SAMPLES.value, attention)
    mesh = Mesh(np.array(devices[:1]).reshape(1, 1), MESH_AXES)
    here = NamedSharding(mesh, P())

    def loss(params: Any, first: Array, key: Array, *others: Array) -> Array:
        rngs = {"dropout": key}
        out = module.apply({"params": params}, first, *others, method=method, rngs=rngs)
        return jnp.square(jnp.asarray(out).astype(jnp.float32)).sum()

    def initial(key: Array, *operands: Array) -> Any:
        return module.init({"params": key, "dropout": key}, *operands, method=method)["params"]

    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(initial, key, *operands)
    first, *others = operands
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        (params, first, key, *others),
    )
    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments)


def main(arguments: list[str]) -> None:
    """Compiles and prints each form of attention."""
    del arguments
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    target = describe(_TOPOLOGY.value)
    for attention in _ATTENTION.value:
        print(f"attention {attention}:", flush=True)
        _report(parse(lower(target.devices, attention).compile().as_text()), target)


def _report(module: Module, target: Slice) -> None:
    rows: dict[tuple[str, str], list[float]] = {}
    for share in by_stage(module, target):
        row = rows.setdefault((share.of_pass, share.kind), [0.0, 0.0, 0.0])
        for i, value in enumerate((share.flops / 1e12, share.bytes / GIB, share.seconds * 1e3)):
            row[i] += value
    for (of_pass, kind), (flops, size, time) in rows.items():
        print(f"{of_pass:14} {kind:13} {flops:6.2f} TFLOP {size:7.1f} GiB {time:7.2f} ms")
    total = estimate(module, target)
    cycles = sum(
        visit.runs * int(match[1])
        for visit in module.visits()
        if visit.scheduled
        and (match := re.search(r'"estimated_cycles":"(\d+)"', visit.instruction.rest))
    )
    print(
        f"{total.flops / 1e12:.2f} TFLOP, {total.hbm_bytes / GIB:.1f} GiB, "
        f"{total.core_seconds * 1e3:.2f} ms, MFU bound {total.mfu_bound:.1%}, "
        f"{cycles / 1e6:.1f} M cycles"
    )


if __name__ == "__main__":
    app.run(main)
