"""Weights in int8: how they are rounded, and products that never hold them in float."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from tests.xvla_jax import golden
from xvla_jax.models.int8 import (
    GROUPS,
    Int8,
    Int8Leaf,
    group_of,
    int8_groups,
    int8_params,
    quantised,
    scale_shape,
)
from xvla_jax.models.int8 import lookup as rows_of
from xvla_jax.models.layers import DomainLinear, KeyProjection, PackedQKV
from xvla_jax.models.low_rank import Conv, Dense

_CASE = golden.load("ee6d")
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5, 8)), jnp.float32)


def test_rounding_is_symmetric_and_by_channel() -> None:
    kernel = np.array([[1.27, -2.0, 0.0], [-0.64, 0.5, 0.0]], np.float32)
    made = quantised(kernel, "head_mlp")
    np.testing.assert_array_equal(made.values, [[127, -127, 0], [-64, 32, 0]])
    np.testing.assert_allclose(made.scale, [[0.01, 2 / 127, 0]], rtol=1e-6)
    # half of a step at most, and again is no change
    expanded = np.asarray(made.expanded())
    assert (np.abs(expanded - kernel) <= np.asarray(made.scale) / 2).all()
    np.testing.assert_array_equal(quantised(expanded, "head_mlp").values, made.values)


@pytest.mark.parametrize(
    ("group", "shape", "scales"),
    [
        ("head_mlp", (3, 4, 5), (3, 1, 5)),  # layers or domains, in, out
        ("vision_embed", (3, 3, 4, 5), (1, 1, 1, 5)),
        ("token_table", (7, 4), (7, 1)),
    ],
)
def test_one_scale_serves_a_channel(
    group: str, shape: tuple[int, ...], scales: tuple[int, ...]
) -> None:
    value = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert quantised(value, group).scale.shape == scale_shape(group, shape) == scales


def _layers(dtype: Any) -> dict[str, tuple[nn.Module, str, tuple[jax.Array, ...]]]:
    ids = jnp.asarray([2, 0])
    return {
        "linear": (Dense(6, dtype=dtype), "head_mlp", (X,)),
        "packed": (PackedQKV(2, dtype=dtype), "head_attention", (X,)),
        "key": (KeyProjection(dtype=dtype), "text_attention", (X,)),
        "domain": (DomainLinear(6, 3, dtype=dtype), "action_encoder", (X[:, 0], ids)),
        "conv": (Conv(6, (3, 3), strides=2, padding=1, dtype=dtype), "vision_embed", (X,)),
    }


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", _layers(None))
def test_a_layer_multiplies_by_integers(name: str, dtype: Any) -> None:
    """The product equals that with the expanded weights, up to the rounding of the last step."""
    layer, group, arguments = _layers(dtype)[name]
    params = dict(layer.init(jax.random.key(0), *arguments)["params"])
    made = quantised(np.asarray(params["kernel"]), group)
    ours = layer.apply({"params": params | {"kernel": made}}, *arguments)
    wide, _, arguments = _layers(jnp.float32)[name]
    expanded = wide.apply({"params": params | {"kernel": made.expanded()}}, *arguments)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expanded), strict=True):
        assert a.dtype == dtype
        tolerance = 1e-5 if dtype == jnp.float32 else 0.03
        np.testing.assert_allclose(a.astype(np.float32), b, atol=tolerance * np.abs(b).max())


def test_a_loop_keeps_no_float_copy() -> None:
    """The cast is in the body: outside there is no float32 array of the kernel's shape."""
    kernel = quantised(
        np.random.default_rng(0).normal(size=(24, 24)).astype(np.float32), "text_mlp"
    )

    def loop(x: jax.Array, kernel: Int8) -> jax.Array:
        return jax.lax.fori_loop(0, 3, lambda _, x: x @ kernel, x)

    program = jax.jit(loop).lower(jnp.ones((2, 24)), kernel).compile().as_text() or ""
    entry = program[program.index("\nENTRY ") :]
    assert "s8[24,24]" in entry
    assert "f32[24,24]" not in entry
    assert "f32[24,24]" in program


def test_rows_of_a_table() -> None:
    table = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    made, ids = quantised(table, "token_table"), jnp.asarray([[3, 3, 0]])
    np.testing.assert_array_equal(rows_of(made, ids), np.asarray(made.expanded())[ids])
    np.testing.assert_array_equal(rows_of(table, ids), table[ids])


def test_every_matrix_is_in_one_group() -> None:
    flat: dict[tuple[str, ...], Any] = flatten_dict(_CASE.params)
    grouped = {path for path in flat if group_of(path)}
    for path, leaf in flat.items():
        # what is left: depthwise convolutions, positions, soft prompts, and all vectors
        small = leaf.ndim == 1 or path[-2] in ("conv1", "conv2")
        other = "embedding" in path[-1] and path[-1] != "token_embedding"
        vector = path[-1] in ("bias", "scale") or path[-1] in ("pos_emb", "soft_prompts")
        assert (path in grouped) == (not (small or other or vector)), path
    assert {group_of(path) for path in grouped} == set(GROUPS)


def test_leaves_are_rounded_as_they_are_used() -> None:
    params = _CASE.params
    chosen = int8_params(params, ["head_mlp"])
    assert int8_groups(chosen) == ("head_mlp",)
    assert int8_groups(params) == ()
    leaf = chosen["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    before = params["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert isinstance(leaf, Int8Leaf)
    assert (leaf.shape, leaf.dtype, leaf.size) == (before.shape, np.float32, before.size)
    part = leaf.parts(1)
    assert isinstance(part, Int8)
    np.testing.assert_array_equal(leaf[1], np.asarray(part.expanded()))
    np.testing.assert_array_equal(np.asarray(leaf)[1], leaf[1])
    assert int8_params(chosen, ["head_mlp"])["transformer"] == chosen["transformer"]
