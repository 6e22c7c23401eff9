"""Placement by path, and the same numbers on any mesh."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from configs import models
from tests.xvla_jax import slices, tiny
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError
from xvla_jax.models import soft_transformer
from xvla_jax.models.xvla import XVLA
from xvla_jax.sharding import global_batch, make_mesh, path_of, tree_shardings
from xvla_jax.training.state import init_state
from xvla_jax.training.step import make_train_step

# Of the largest value of a leaf. Sums over shards come in another order: float32 keeps 7 digits.
_TOLERANCE = 2e-5


def _spec(path: str, shape: tuple[int, ...]) -> P:
    tree: Any = jax.ShapeDtypeStruct(shape, np.float32)
    for key in reversed(path.split("/")):
        tree = {key: tree}
    [sharding] = jax.tree.leaves(tree_shardings(tree, tiny.mesh(2, 4)))
    return sharding.spec


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        ("vlm/text_encoder/token_embedding", (51289, 1024), P(None, "fsdp")),  # 51289 is odd
        ("vlm/vision_tower/embed0/conv/kernel", (7, 7, 3, 256), P(None, None, None, "fsdp")),
        ("vlm/vision_tower/stage3_channel0/conv2/kernel", (3, 3, 1, 2048), P()),  # depthwise
        ("transformer/norm/scale", (1024,), P()),  # small
        ("transformer/blocks/mlp/fc1/kernel", (24, 1024, 4096), P(None, None, "fsdp")),
        ("transformer/blocks/mlp/fc2/kernel", (24, 4096, 1024), P(None, "fsdp", None)),
        ("vlm/text_encoder/layers/norm1/bias", (16384, 7), P()),  # only the layers would divide
        ("transformer/soft_prompts", (32, 32, 1024), P()),  # gathered by domain
        ("transformer/action_decoder/kernel", (32, 1024, 512), P()),
        ("transformer/vlm_proj/kernel", (1022, 1026), P()),  # nothing divides by 4
        (
            "opt_state/1/mu/transformer/blocks/attn/proj/kernel",
            (24, 256, 256),
            P(None, "fsdp", None),
        ),
    ],
)
def test_specs(path: str, shape: tuple[int, ...], spec: P) -> None:
    assert _spec(path, shape) == spec


def test_a_path_without_a_rule_is_named() -> None:
    with pytest.raises(ConfigError, match="no sharding rule covers 'head/w'"):
        tree_shardings({"head": {"w": np.zeros(2)}}, tiny.mesh(1, 1), rules=())


@pytest.mark.parametrize(
    ("data", "fsdp", "actual"), [(-1, 2, (4, 2)), (2, -1, (2, 4)), (8, 1, (8, 1)), (-1, 8, (1, 8))]
)
def test_meshes(data: int, fsdp: int, actual: tuple[int, int]) -> None:
    mesh = make_mesh(data, fsdp)
    assert (mesh.shape["data"], mesh.shape["fsdp"]) == actual


@pytest.mark.parametrize(
    ("data", "fsdp", "message"),
    [
        (2, 2, "2 x 2 does not use all of the 8 devices"),
        (-1, 3, "2 x 3 does not use"),
        (-1, 16, "0 x 16 does not use"),
        (-1, -1, "are both -1"),
    ],
)
def test_meshes_that_leave_devices_are_refused(data: int, fsdp: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_mesh(data, fsdp)


@pytest.mark.parametrize("kind", slices.GRIDS)
@pytest.mark.parametrize("fsdp", [1, 2, 4, 8, 16])
def test_every_slice_of_up_to_512_chips_has_its_mesh(kind: str, fsdp: int) -> None:
    for grid in slices.GRIDS[kind]:
        chips = slices.devices(kind, grid)
        if len(chips) % fsdp:
            nearest = f"the nearest fsdp is {len(chips)}"
            with pytest.raises(ConfigError, match=nearest):
                make_mesh(-1, fsdp, chips)
            continue
        mesh = make_mesh(-1, fsdp, chips)
        assert mesh.shape == {"data": len(chips) // fsdp, "fsdp": fsdp}
        assert {d.id for d in mesh.devices.flat} == {d.id for d in chips}
        # a copy of the weights is as near together as it can be: within a block of the slice
        spans = np.ptp([[d.coords for d in row] for row in mesh.devices], axis=1) + 1
        assert spans.prod(axis=-1).max() == fsdp


def test_copies_of_the_weights_stay_within_a_slice() -> None:
    mesh = make_mesh(-1, 4, slices.devices("v6e", "4x4", slices=2))
    assert mesh.shape == {"data": 8, "fsdp": 4}
    assert all(len({d.slice_index for d in row}) == 1 for row in mesh.devices)
    message = r"may span two of the 2 slices of 4 devices; the nearest that divides 4 is 4"
    with pytest.raises(ConfigError, match=message):
        make_mesh(-1, 8, slices.devices("v5e", "2x2", slices=2))


def test_a_batch_is_split_over_both_axes() -> None:
    mesh = tiny.mesh(2, 4)
    placed = global_batch({"x": np.arange(16).reshape(16, 1)}, mesh)["x"]
    assert [s.data.ravel().tolist() for s in placed.addressable_shards] == [
        [2 * i, 2 * i + 1] for i in range(8)
    ]
    with pytest.raises(ConfigError, match="batch of 12 per process cannot be split over 8 devices"):
        global_batch({"x": np.zeros((12, 1))}, mesh)


@functools.cache
def _stepped(data: int, fsdp: int) -> Any:
    """Metrics, and Adam's first moments, which after one step are the clipped gradients / 20."""
    state, metrics = tiny.step(tiny.state(data, fsdp), tiny.batch(), data, fsdp)
    return jax.device_get((metrics, state.opt_state[1].mu))


# 2 x 4 uses both axes; each further mesh costs another compilation of the step.
@pytest.mark.parametrize(
    ("data", "fsdp"),
    [
        (2, 4),
        pytest.param(8, 1, marks=pytest.mark.slow),
        pytest.param(1, 8, marks=pytest.mark.slow),
    ],
)
def test_a_step_gives_the_same_numbers_on_any_mesh(data: int, fsdp: int) -> None:
    _assert_close(_stepped(data, fsdp), _stepped(1, 1))


def _assert_close(sharded_step: Any, single_step: Any) -> None:
    """Metrics and moments of two steps, as `_stepped` gives them."""
    (metrics, grads), (expected, expected_grads) = sharded_step, single_step
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=_TOLERANCE, err_msg=name)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_grads))
    assert largest > 1e-4, "the gradients are not all zero"

    def compare(path: Any, actual: np.ndarray, one_device: np.ndarray) -> None:
        allowed = _TOLERANCE * np.abs(one_device).max() + 1e-8 * largest
        np.testing.assert_allclose(actual, one_device, rtol=0, atol=allowed, err_msg=path_of(path))

    jax.tree_util.tree_map_with_path(compare, grads, expected_grads)


@pytest.mark.slow
def test_a_batch_in_parts_gives_the_same_numbers_on_a_mesh(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(soft_transformer, "DROPOUT", 0.0)  # its masks depend on the part
    shape = dataclasses.replace(models.TINY, dropout=0.0)
    model = XVLA(XVLAConfig.from_dict(models.model_dict(shape, action_mode="ee6d")))

    def stepped(accumulate: int, data: int, fsdp: int) -> Any:
        recipe = dataclasses.replace(tiny.RECIPE, model=model, accumulate=accumulate)
        train_step = make_train_step(recipe, tiny.PROCESSOR, seed=0)
        mesh, host_batch = tiny.mesh(data, fsdp), tiny.batch(size=16)
        shown = host_batch | {"images": host_batch["images"][:, :2]}
        with jax.set_mesh(mesh):
            state, metrics = train_step(tiny.state(data, fsdp), global_batch(shown, mesh))
        return jax.device_get((metrics, state.opt_state[1].mu))

    _assert_close(stepped(2, 2, 4), stepped(1, 1, 1))


@pytest.mark.slow
def test_several_draws_give_the_same_numbers_on_a_mesh() -> None:
    recipe = dataclasses.replace(tiny.RECIPE, noise_draws=3)
    train_step = make_train_step(recipe, tiny.PROCESSOR, seed=0)

    def stepped(data: int, fsdp: int) -> Any:
        mesh, host_batch = tiny.mesh(data, fsdp), tiny.batch()
        shown = host_batch | {"images": host_batch["images"][:, :2]}
        fresh = tiny.state(
            data, fsdp
        )  # before a mesh is set, as its first call makes it on another
        with jax.set_mesh(mesh):
            state, metrics = train_step(fresh, global_batch(shown, mesh))
        return jax.device_get((metrics, state.opt_state[1].mu))

    _assert_close(stepped(2, 4), stepped(1, 1))


@pytest.mark.slow
def test_a_fresh_state_is_made_in_shards_and_is_the_same_on_any_mesh() -> None:
    fresh = init_state(tiny.RECIPE, tiny.mesh(2, 4), seed=0)
    for tree in (fresh.params, fresh.opt_state[1].mu):
        table = tree["vlm"]["text_encoder"]["token_embedding"]
        assert table.sharding.spec == P(None, "fsdp")
        assert {s.data.shape for s in table.addressable_shards} == {(51289, 4)}
    assert tiny.equal(fresh, tiny.host_state())
