"""Adapters against PyTorch with PEFT, and their algebra."""

from __future__ import annotations

import collections
import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import golden
from tests.xvla_jax.golden import assert_close
from xvla_jax import flow
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import CheckpointError
from xvla_jax.lora import (
    Adapter,
    LoraConfig,
    apply_adapter,
    init_adapter,
    load_adapter,
    merge_adapter,
)
from xvla_jax.models.xvla import abstract_params
from xvla_jax.training.groups import label_tree, xvla_groups

ADAPTERS = golden.FOLDER.parent / "lora"


def _adapter(name: str) -> tuple[golden.Case, Adapter]:
    case = golden.load(name)
    return case, load_adapter(ADAPTERS / name, case.config)


def _flat(tree: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


@pytest.mark.parametrize("name", ["ee6d", "joint_hetero"])
def test_merged_actions_are_those_of_pytorch_with_the_adapter_active(name: str) -> None:
    case, adapter = _adapter(name)
    merged = dataclasses.replace(case, params=merge_adapter(case.params, adapter))
    mask = np.asarray(case.inputs["image_mask"])
    with np.load(ADAPTERS / name / "actions.npz") as expected:
        actions = jax.jit(flow.sample, static_argnums=0, static_argnames="steps")(
            case.model,
            merged.params,
            merged.encode_views(mask.shape[1], mask),
            jnp.asarray(case.inputs["proprio"]),
            jnp.asarray(case.inputs["domain_id"]),
            noise=jnp.asarray(case.inputs["sample_noise"]),
            steps=10,
        )
        assert_close("LoRA actions", actions, expected["actions_steps10"], of_largest=1e-5)
        assert np.abs(expected["actions_steps10"] - case.outputs["actions_steps10"]).max() > 1


# scale 2 times a [2, 1] @ b [1, 3]
A, B = np.asarray([[1.0], [10.0]], np.float32), np.asarray([[1.0, 0.0, -1.0]], np.float32)
DELTA = [[2, 0, -2], [20, 0, -20]]


def _small(stacked: bool) -> tuple[dict[str, Any], dict[str, Any], dict[Any, Any]]:
    """A 2x3 kernel (or two, of which the second is adapted), a bias, and a leaf saved in full."""
    kernel, scale = np.ones((2, 3), np.float32), np.float32(2)
    a, b = A, B
    if stacked:
        kernel, scale = np.stack([kernel] * 2), np.asarray([[[0]], [[2]]], np.float32)
        a, b = np.stack([0 * A, A]), np.stack([0 * B, B])
    params = {"layer": {"kernel": kernel, "bias": np.zeros(3)}, "prompts": np.zeros(2)}
    tensors = {"layer": {"kernel": {"a": a, "b": b}}, "prompts": np.asarray([5.0, 6.0])}
    return params, tensors, {("layer", "kernel"): scale}


@pytest.mark.parametrize("stacked", [False, True])
def test_merge_by_hand(stacked: bool) -> None:
    params, tensors, scales = _small(stacked)
    merged = apply_adapter(params, tensors, scales, product=np.matmul)
    expected = 1 + np.asarray([np.zeros((2, 3)), DELTA] if stacked else DELTA)
    np.testing.assert_array_equal(merged["layer"]["kernel"], expected)
    np.testing.assert_array_equal(merged["prompts"], [5, 6])
    assert merged["layer"]["bias"] is params["layer"]["bias"]
    np.testing.assert_array_equal(params["layer"]["kernel"], np.ones_like(expected))
    np.testing.assert_array_equal(params["prompts"], [0, 0])


def test_jitted_merge_is_the_merge_on_the_host() -> None:
    case, adapter = _adapter("joint_hetero")
    jitted = jax.jit(lambda p, t: apply_adapter(p, t, adapter.scales))(case.params, adapter.tensors)
    host = _flat(merge_adapter(case.params, adapter))
    for path, leaf in _flat(jitted).items():
        np.testing.assert_allclose(leaf, host[path], rtol=1e-6, atol=1e-6, err_msg=path)


def test_gradients_reach_the_pair_and_stay_zero_where_a_layer_is_not_adapted() -> None:
    params, tensors, scales = _small(stacked=True)

    def loss(t: Any) -> jax.Array:
        merged = apply_adapter(params, t, scales)
        weights = jnp.arange(1.0, 7.0).reshape(2, 3)
        return (merged["layer"]["kernel"] * weights).sum() + (merged["prompts"] ** 2).sum()

    grads = jax.jit(jax.grad(loss))(jax.tree.map(jnp.asarray, tensors))
    pair = grads["layer"]["kernel"]
    np.testing.assert_array_equal(pair["a"], [[[0], [0]], [[-4], [-4]]])  # 2 * weights @ B^T
    np.testing.assert_array_equal(pair["b"], [[[0, 0, 0]], [[82, 104, 126]]])  # 2 * A^T @ weights
    np.testing.assert_array_equal(grads["prompts"], [10, 12])


def test_an_adapter_of_another_base_is_not_merged() -> None:
    params, tensors, scales = _small(stacked=False)
    with pytest.raises(CheckpointError, match=r"changes \['tail'\] of layer, .*another base"):
        apply_adapter(params, {"layer": {"tail": np.zeros(2)}}, scales)
    for rows in (1, 5):  # one row would broadcast
        params["layer"]["kernel"] = np.ones((rows, 3), np.float32)
        actual = rf"layer/kernel is \[2, 3\], the base's \[{rows}, 3\]"
        with pytest.raises(CheckpointError, match=actual):
            apply_adapter(params, tensors, scales)


def test_a_fresh_adapter_changes_nothing_and_starts_as_peft_does() -> None:
    case, recipe = golden.load("ee6d"), LoraConfig(rank=2, alpha=6).peft()
    adapter = init_adapter(case.params, case.config, recipe, seed=3)
    merged, before = _flat(merge_adapter(case.params, adapter)), _flat(case.params)
    assert all(np.array_equal(merged[path], before[path]) for path in before)
    kernel = adapter.tensors["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel["a"].shape == (2, 48, 2)
    assert 0.9 < np.abs(kernel["a"]).max() * 48**0.5 <= 1  # uniform within 1 / sqrt(fan in)
    assert abs(kernel["a"].std() * 48**0.5 - 3**-0.5) < 0.05
    assert not kernel["b"].any()
    scale = adapter.scales["transformer", "blocks", "mlp", "fc1", "kernel"]
    np.testing.assert_array_equal(scale, [[[3]], [[3]]])
    other = init_adapter(case.params, case.config, recipe, seed=4)
    assert not np.array_equal(
        kernel["a"], _flat(other.tensors)["transformer/blocks/mlp/fc1/kernel/a"]
    )


def test_the_released_recipe_at_full_size() -> None:
    text = (golden.FOLDER / "full_size_config.json").read_text()
    config = XVLAConfig.from_dict(json.loads(text))
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), abstract_params(config))
    adapter = init_adapter(zeros, config, LoraConfig().peft(), seed=0)
    # The optimizer's table covers an adapter too: its paths begin as those of the parameters.
    group_of: Any = _flat(label_tree(adapter.tensors, xvla_groups(1.0)))
    counts = collections.Counter[str]()
    for path, leaf in _flat(adapter.tensors).items():
        part = path.split("/")[1] if path.startswith("vlm") else group_of[path].groups[0].name
        counts[part] += leaf.size
    assert counts == {
        "vision_tower": 3_080_192,
        "text_encoder": 1_769_472,
        "transformer_core": 3_178_496,
        "action_heads": 2_242_560 + 615_000,
        "soft_prompts": 983_040,
    }
