"""Gates, comparisons and stage outputs; the generated observations they are fed with."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.xvla_jax import golden, tiny
from xvla_jax.checkpoint_tools import compare, probe
from xvla_jax.checkpoint_tools.compare import STAGES
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError
from xvla_jax.models.inference import inference_params

_ZEROS = {stage.name: np.zeros((2, 3, 4), np.float32) for stage in STAGES}


def _with_actions(value: np.ndarray) -> dict[str, np.ndarray]:
    return {**_ZEROS, "actions": value}


def test_difference_is_measured_against_the_largest_value() -> None:
    expected = np.zeros((2, 3, 4), np.float32)
    expected[0, 0, 0] = -8.0
    outputs = expected.copy()
    outputs[1, 2, 3] = 0.25
    *others, actions = compare.compare(
        _with_actions(outputs), _with_actions(expected), gate=0.25 / 8
    )
    assert [r.quotient for r in others] == [0.0] * 4
    assert all(r.passed for r in others)
    assert (actions.largest_difference, actions.largest_value) == (0.25, 8.0)
    assert actions.where == (1, 2, 3)
    assert actions.passed  # the gate itself passes
    tighter = compare.compare(_with_actions(outputs), _with_actions(expected), gate=0.03)[-1]
    assert not tighter.passed


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("bad_side", ["outputs", "expected"])
def test_what_is_not_finite_fails_and_is_null_in_json(bad: float, bad_side: str) -> None:
    sides = {"outputs": np.ones((2, 3, 4)), "expected": np.ones((2, 3, 4))}
    sides[bad_side][0, 1, 2] = bad
    outputs, expected = (_with_actions(sides[side]) for side in ("outputs", "expected"))
    result = compare.compare(outputs, expected, gate=3e-2)[-1]
    assert not result.passed
    assert result.where == (0, 1, 2)
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert written["largest_difference"] is None
    assert written["passed"] is False
    assert written["axes"] == "sample, row, channel"


def test_a_difference_from_zeros_fails() -> None:
    outputs = _with_actions(np.full((2, 3, 4), 1e-9, np.float32))
    assert not compare.compare(outputs, _ZEROS, gate=3e-2)[-1].passed


def test_no_other_views_pass_and_other_shapes_are_refused() -> None:
    empty = {**_ZEROS, "aux_visual_inputs": np.zeros((2, 0, 4), np.float32)}
    assert all(r.passed for r in compare.compare(empty, empty, gate=1e-5))
    with pytest.raises(ConfigError, match=r"aux_visual_inputs is \[2, 0, 4\].*\[2, 3, 4\]"):
        compare.compare(empty, _ZEROS, gate=1e-5)


def test_the_widest_gate_applies() -> None:
    assert compare.gate_of(["float32"]) == ("float32", 1e-5)
    assert compare.gate_of(["float32", "bfloat16", "float16"]) == ("bfloat16", 3e-2)


def test_stages_are_those_of_the_golden_case() -> None:
    """One sample of this case lacks its first view; the domains have projections of their own."""
    case = golden.load("joint_hetero")
    made = probe.make_inputs(case.config, tiny.PROCESSOR, count=1, seed=0)
    inputs = {name: case.inputs[name] for name in made}
    outputs = compare.stage_outputs(
        case.config, inference_params(case.params), inputs, dtype="float32", steps=10
    )
    expected = {**case.outputs, "actions": case.outputs["actions_steps10"]}
    results = compare.compare(outputs, expected, gate=1e-5)
    assert [r.quotient for r in results if not r.passed] == []
    assert min(r.largest_value for r in results) > 0.1


def test_observations_cover_views_and_domains() -> None:
    inputs = probe.make_inputs(tiny.CONFIG, tiny.PROCESSOR, count=4, seed=1)
    assert inputs["image_mask"].sum(axis=1).tolist() == [3, 2, 1, 3]
    assert inputs["image_mask"][:, 0].all()
    assert (inputs["pixel_values"][~inputs["image_mask"]] == 0).all()
    assert inputs["pixel_values"][inputs["image_mask"]].std() > 0.5
    assert inputs["domain_id"][:2].tolist() == [0, 29]
    assert inputs["input_ids"].shape == (4, 12)
    assert (inputs["input_ids"][:, 0] == 0).all()  # <s>: instructions went through the tokenizer
    assert inputs["head_t"].tolist() == [1.0, 0.75, 0.5, 0.25]
    again = probe.make_inputs(tiny.CONFIG, tiny.PROCESSOR, count=4, seed=1)
    other = probe.make_inputs(tiny.CONFIG, tiny.PROCESSOR, count=4, seed=2)
    assert all(np.array_equal(inputs[k], again[k]) for k in inputs)
    for name in ("pixel_values", "proprio", "sample_noise", "head_action"):
        assert not np.array_equal(inputs[name], other[name])
        assert inputs[name].dtype == np.float32


def test_sizes_are_the_released_ones_where_they_fit() -> None:
    raw = json.loads((golden.FOLDER / "full_size_config.json").read_text())
    inputs = probe.make_inputs(XVLAConfig.from_dict(raw), None, count=1, seed=0)
    assert inputs["pixel_values"].shape == (1, 3, 3, 224, 224)
    assert inputs["input_ids"].shape == (1, 50)
    assert inputs["domain_id"].tolist() == [0]


def test_sizes_shrink_to_the_tables_of_a_toy() -> None:
    config = golden.load("ee6d").config  # 40 positions in the encoder, 64 in the head, 83 ids
    inputs = probe.make_inputs(config, None, count=3, seed=0)
    # 96 px make a map of 3 x 3, so 10 tokens a view; 64 - 7 actions - 3 * 10 leave 27 for text.
    assert inputs["pixel_values"].shape[-1] == 96
    ids = inputs["input_ids"]
    assert ids.shape == (3, 27)
    assert ids.max() < 83
    lengths = (ids != 1).sum(axis=1)
    assert (ids[np.arange(27) >= lengths[:, None]] == 1).all()
