"""The policy: its answer depends on observation and seed alone, and it refuses nonsense by name."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xvla_jax
from tests.xvla_jax import golden, tiny
from xvla_jax.batch import Observation
from xvla_jax.contract import Contract
from xvla_jax.errors import CheckpointError, InputError
from xvla_jax.lora import load_adapter, merge_adapter
from xvla_jax.planning import flops
from xvla_jax.plans import DEFAULT, SamplerPlan
from xvla_jax.policy import Policy, chunk
from xvla_jax.processor import Processor

_STEPS = 2


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(tiny.CONFIG, tiny.params(), tiny.PROCESSOR, {})


def _observation(number: int, views: int, domain: int) -> Observation:
    rng = np.random.default_rng(number)
    return {
        "images": [rng.integers(0, 256, (40, 48, 3), np.uint8) for _ in range(views)],
        "instruction": f"pick up bowl {number}",
        "proprio": rng.normal(0, 0.3, 20).astype(np.float32),
        "domain_id": domain,
    }


_MIXED = [_observation(0, 1, 0), _observation(1, 2, 3), _observation(2, 3, 29)]
_SEEDS = [5, 6, 2**32 - 1]


def _one(policy: Policy, observation: Observation, seed: int) -> np.ndarray:
    return policy.act([observation], steps=_STEPS, seed=[seed])[0]


def test_a_mixed_batch_equals_batches_of_one(policy: Policy) -> None:
    """Three robots with one, two and three views."""
    together = policy.act(_MIXED, steps=_STEPS, seed=_SEEDS)
    assert together.shape == (3, 6, 20)
    assert together.dtype == np.float32
    alone = [_one(policy, o, s) for o, s in zip(_MIXED, _SEEDS, strict=True)]
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=1e-5)
    grippers = together[..., [9, 19]]
    assert ((grippers > 0) & (grippers < 1)).all()


def test_the_seed_decides(policy: Policy) -> None:
    first = _one(policy, _MIXED[1], 6)
    np.testing.assert_array_equal(_one(policy, _MIXED[1], 6), first)
    assert np.abs(_one(policy, _MIXED[1], 7) - first).max() > 1e-4
    np.testing.assert_array_equal(policy.act([_MIXED[1]], steps=_STEPS, seed=6)[0], first)


def test_every_view_and_the_domain_are_seen(policy: Policy) -> None:
    full = _MIXED[2]
    answer = _one(policy, full, 0)
    for change in ({"images": full["images"][:2]}, {"domain_id": 28}, {"instruction": "wave"}):
        changed: Observation = {**full, **change}  # pyright: ignore[reportAssignmentType]
        assert np.abs(_one(policy, changed, 0) - answer).max() > 1e-6, change


def test_steps_of_each_observation_share_a_program(policy: Policy) -> None:
    """The number of steps is an input: no program of its own, no effect of the neighbours'."""
    together = policy.act(_MIXED, steps=[1, 2, 4], seed=_SEEDS)
    count = _programs()
    for i, steps in enumerate((1, 2, 4)):
        alike = policy.act(_MIXED, steps=steps, seed=_SEEDS)
        np.testing.assert_array_equal(alike[i], together[i])
    assert _programs() == count
    assert np.abs(policy.act(_MIXED, steps=1, seed=_SEEDS)[2] - together[2]).max() > 1e-6
    with pytest.raises(InputError, match="steps is 0; at least 1"):
        policy.act(_MIXED, steps=[1, 0, 1])


def test_plans_of_one_form_share_a_program_and_others_run_apart(policy: Policy) -> None:
    """The second and third observation keep their context, for one step and for three."""
    rows = [DEFAULT, SamplerPlan("two", 2, refresh=(0,)), SamplerPlan("four", 4, refresh=(0,))]
    mixed = policy.act(_MIXED, seed=_SEEDS, plan=rows)
    np.testing.assert_allclose(mixed[0], policy.act(_MIXED[:1], seed=_SEEDS[:1])[0], atol=1e-5)
    count = _programs()
    for i in (1, 2):
        alone = policy.act(_MIXED[1:], seed=_SEEDS[1:], plan=rows[i])
        np.testing.assert_array_equal(alone[i - 1], mixed[i])
    assert _programs() == count
    with pytest.raises(InputError, match="2 plans for 3 observations"):
        policy.act(_MIXED, plan=rows[:2])


def test_in_a_batch_of_one_size_the_neighbours_change_no_bit(policy: Policy) -> None:
    """Another batch size changes rounding alone: see the mixed batch above."""
    batch = [_MIXED[2], _MIXED[0], _MIXED[1], _MIXED[2]]
    first = policy.act(batch, steps=_STEPS, seed=[1, 2, 3, 4])
    others = policy.act([_MIXED[1], _MIXED[2], _MIXED[2], _MIXED[0]], steps=[3, 1, 2, 2],
                        seed=[9, 8, 1, 2])  # fmt: skip
    np.testing.assert_array_equal(others[2], first[0])
    np.testing.assert_array_equal(others[3], first[1])


def test_padding_keeps_the_programs_few(policy: Policy) -> None:
    """Three observations and four share the program of four; so do two policies of a model."""
    policy.act(_MIXED, steps=_STEPS, seed=_SEEDS)
    count = _programs()
    policy.act([*_MIXED, _MIXED[0]], steps=_STEPS, seed=0)
    other = Policy(tiny.CONFIG, tiny.params(), tiny.PROCESSOR, {})
    other.act(_MIXED, steps=_STEPS, seed=_SEEDS)
    assert _programs() == count


@pytest.mark.slow
def test_absent_views_have_a_program_of_their_own(policy: Policy) -> None:
    """A batch in which nobody has a third view runs the tower on two: fewer FLOPs, same actions."""
    two = [_MIXED[0], _MIXED[1]]
    full = policy.act([*two, _MIXED[2]], steps=_STEPS, seed=_SEEDS)
    count = _programs()
    np.testing.assert_allclose(policy.act(two, steps=_STEPS, seed=_SEEDS[:2]), full[:2], atol=1e-5)
    assert _programs() == count + 1
    work = [
        sum(flops.flops_by_stage(text, {}).values())
        for views in (1, 2, 3)
        for text in [policy.lower(views=views, batch=1, steps=_STEPS).compile().as_text()]
    ]
    assert work[1] - work[0] == work[2] - work[1] > 0.1 * work[0]


def _programs() -> int:
    return chunk._cache_size()  # pyright: ignore[reportAttributeAccessIssue] jit's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain_id": 30}, r"domain_id 30 is out of range; this model has domains 0 \.\. 29"),
        ({"domain_id": -1}, "domain_id -1 is out of range"),
        (
            {"proprio": np.zeros(7, np.float32)},
            r"observation 1: proprio has shape \(7,\); 20 finite",
        ),
        ({"proprio": np.full(20, np.nan, np.float32)}, "observation 1: .* 20 finite numbers"),
        ({"images": []}, r"has 0 images; 1 \.\. 3"),
        ({"instruction": ""}, "an instruction is ''"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(
    policy: Policy, change: dict[str, object], message: str
) -> None:
    wrong: Observation = {**_MIXED[1], **change}  # pyright: ignore[reportAssignmentType] on purpose
    with pytest.raises(InputError, match=message):
        policy.act([_MIXED[0], wrong])


def test_no_observation_and_a_wrong_number_of_seeds_are_refused(policy: Policy) -> None:
    with pytest.raises(InputError, match="no observation"):
        policy.act([])
    with pytest.raises(InputError, match="2 seeds for 3 observations"):
        policy.act(_MIXED, seed=[1, 2])


def test_a_folder_without_a_processor_is_no_policy(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(golden.FOLDER / "ee6d" / name, tmp_path)
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        Policy.from_pretrained(tmp_path)
    tiny.PROCESSOR.write(tmp_path)
    policy = Policy.from_pretrained(tmp_path)
    assert policy.processor.image_size == 32
    assert policy.config == golden.load("ee6d").config


def test_an_adapter_is_merged_and_a_processor_may_lie_elsewhere(tmp_path: Path) -> None:
    adapter = golden.FOLDER.parent / "lora" / "ee6d"
    tiny.PROCESSOR.write(tmp_path)
    case = golden.load("ee6d")
    merged = merge_adapter(case.params, load_adapter(adapter, case.config))
    expected = Policy(case.config, merged, tiny.PROCESSOR, {})
    actual = Policy.from_pretrained(golden.FOLDER / "ee6d", adapter=adapter, processor=tmp_path)
    assert actual.processor.image_size == 32
    assert tiny.equal(actual.params, expected.params)
    assert not tiny.equal(
        actual.params, Policy(case.config, case.params, tiny.PROCESSOR, {}).params
    )


@pytest.mark.parametrize("layout", ["hf", "orbax"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layers_come_apart_as_they_are_read(tmp_path: Path, layout: str, dtype: Any) -> None:
    """Each layer of a stack under a name of its own; all but LayerNorm in the computing type."""
    case = golden.load("ee6d")
    combined: Any = case.params
    xvla_jax.save_pretrained(
        tmp_path / "p", case.config, combined, layout, processor=Processor(image_size=64)
    )
    params: Any = Policy.from_pretrained(tmp_path / "p", dtype=dtype).params
    for i in range(case.config.depth):
        kernel = params["transformer"][f"blocks_{i}"]["mlp"]["fc1"]["kernel"]
        expected = combined["transformer"]["blocks"]["mlp"]["fc1"]["kernel"][i]
        np.testing.assert_array_equal(kernel, jnp.asarray(expected, dtype))
        assert kernel.dtype == dtype
        assert params["transformer"][f"blocks_{i}"]["norm1"]["scale"].dtype == jnp.float32
    layers = [name for name in params["vlm"]["text_encoder"] if name.startswith("layers_")]
    assert len(layers) == case.config.text.encoder_layers
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (params, combined)]
    assert sizes[0] == sizes[1] == 180_888


_NO_GRIPPER = Contract(
    3,
    "ee6d",
    "interleaved",
    10.0,
    ("front",),
    "measured",
    unrecorded=(2, 9),
    relative_channels=(2,),
)


def test_only_views_that_were_sent_are_present(policy: Policy) -> None:
    knowing = Policy(tiny.CONFIG, tiny.params(), tiny.PROCESSOR, {3: _NO_GRIPPER})
    for observation, views in zip(_MIXED, (1, 2, 3), strict=True):
        for each in (policy, knowing):
            assert len(each.prepare(observation).images) == views


def test_channels_that_were_not_recorded_hold_what_the_robot_says(policy: Policy) -> None:
    """They are no input either, and other domains of the batch act as they did."""
    knowing = Policy(tiny.CONFIG, tiny.params(), tiny.PROCESSOR, {3: _NO_GRIPPER})
    other: Any = dict(_MIXED[1])
    proprio = _MIXED[1]["proprio"].copy()
    proprio[[2, 9]] = 0.75, 0.25
    other["proprio"] = proprio
    chunks = knowing.act([_MIXED[0], _MIXED[1], other], steps=_STEPS, seed=[5, 6, 6])
    assert (chunks[2, :, 9] == 0.25).all()
    assert (chunks[2, :, 2] == 0).all(), "relative to the robot's own, so it stays"
    recorded = np.delete(np.arange(20), [2, 9])
    np.testing.assert_array_equal(chunks[1][:, recorded], chunks[2][:, recorded])
    np.testing.assert_allclose(chunks[0], _one(policy, _MIXED[0], 5), atol=1e-5)
    assert knowing.example_inputs(views=1, batch=2)["channel_mask"].shape == (2, 20)
    assert "channel_mask" not in policy.example_inputs(views=1, batch=2)

    absolute = dataclasses.replace(_NO_GRIPPER, relative_channels=())
    knowing = Policy(tiny.CONFIG, tiny.params(), tiny.PROCESSOR, {3: absolute})
    committed = np.full((2, 20), 0.5, np.float32)
    begun: Any = {**other, "prefix": committed, "prefix_committed": 2}
    (chunk_of,) = knowing.act([begun], steps=_STEPS, seed=6)
    np.testing.assert_array_equal(chunk_of[:2], committed)
    assert (chunk_of[2:, [2, 9]] == [0.75, 0.25]).all()


def test_domains_have_names(tmp_path: Path) -> None:
    released = Policy(tiny.CONFIG, tiny.params(), tiny.PROCESSOR, {})
    assert released.domain_id("Droid-Left") == 13
    with pytest.raises(InputError, match=r"domain 'droid' is unknown to .* it has Bridge, RT1, "):
        released.domain_id("droid")
    xvla_jax.save_pretrained(
        tmp_path / "a", tiny.CONFIG, tiny.params(), processor=tiny.PROCESSOR, domains={"arm": 21}
    )
    assert Policy.from_pretrained(tmp_path / "a").domains == {"arm": 21}
