"""Features, inner values, head, sampler and losses against the original model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xvla_jax
from tests.xvla_jax import golden
from tests.xvla_jax.golden import assert_close
from xvla_jax import flow
from xvla_jax.models.inference import inference_params
from xvla_jax.models.layers import time_embedding
from xvla_jax.models.xvla import Context

pytestmark = pytest.mark.parametrize("name", golden.CASES)


def _call(values: Any, *path: str) -> Any:
    """The output of the module at ``path`` among captured intermediates."""
    for key in path:
        values = values[key]
    return values["__call__"][0]


def test_context(name: str) -> None:
    case = golden.load(name)
    context = case.forward()[0]
    assert_close(
        "vlm_features", context.vlm_features, case.outputs["vlm_features"], of_largest=1e-5
    )
    aux, expected = np.asarray(context.aux_visual_inputs), case.outputs["aux_visual_inputs"]
    assert_close("aux_visual_inputs", aux, expected, of_largest=1e-5)
    assert (aux[(expected == 0).all(-1)] == 0).all()  # absent views are exactly zero


def test_inside_values_of_the_towers(name: str) -> None:
    case = golden.load(name)
    out, mask = case.outputs, case.inputs["image_mask"].ravel()
    vlm = case.forward()[2]["vlm"]
    tower = vlm["vision_tower"]

    def check(key: str, value: Any) -> None:
        tokens = np.asarray(value)[mask]  # the reference runs valid views only
        tokens = tokens.reshape(len(tokens), -1, tokens.shape[-1])
        assert_close("mid/*", tokens, out[f"mid/davit.{key}"], of_largest=3e-5)

    for i, depth in enumerate(case.config.vision.depths):
        check(f"conv{i}", _call(tower, f"embed{i}"))
        check(f"stage{i}", _call(tower, f"stage{i}_channel{depth - 1}"))
    x = _call(tower, "embed0")
    for kind, attention in (("spatial", "window_attn"), ("channel", "channel_attn")):
        block = tower[f"stage0_{kind}0"]
        check(
            f"stage0.block0.{kind}.{attention}",
            x + _call(block, "conv1") + _call(block, "attention"),
        )
        x = _call(tower, f"stage0_{kind}0")
        if kind == "spatial":
            check("stage0.block0.spatial", x)

    tokens = np.asarray(_call(vlm, "image_projector"))[mask]
    assert_close("image_features_valid", tokens, out["image_features_valid"], of_largest=1e-5)
    text = vlm["text_encoder"]
    assert_close("mid/*", _call(text, "norm"), out["mid/bart.embed"], of_largest=3e-5)
    layers = np.asarray(_call(text, "layers")[0])  # stacked by the scan
    for i, value in enumerate(layers):
        assert_close("mid/*", value, out[f"mid/bart.layer{i}"], of_largest=3e-5)


def test_head(name: str) -> None:
    case = golden.load(name)
    _, output, _, inside = case.forward()
    head = inside["transformer"]
    assert_close("head_output", output, case.outputs["head_output"], of_largest=1e-5)
    for part in ("action_encoder", "vlm_proj", "aux_visual_proj"):
        assert_close("mid/*", _call(head, part), case.outputs[f"mid/head.{part}"], of_largest=3e-5)
    for i, value in enumerate(np.asarray(_call(head, "blocks")[0])):
        assert_close("mid/*", value, case.outputs[f"mid/head.block{i}"], of_largest=3e-5)
    embedding = time_embedding(jnp.asarray(case.inputs["head_t"]), case.config.dim_time)
    assert_close("mid/*", embedding, case.outputs["mid/head.time_embedding"], of_largest=3e-5)


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_sampler(name: str, steps: int) -> None:
    case = golden.load(name)
    sample = jax.jit(flow.sample, static_argnums=0, static_argnames="steps")
    actions = sample(
        case.model,
        case.params,
        case.forward()[0],
        jnp.asarray(case.inputs["proprio"]),
        jnp.asarray(case.inputs["domain_id"]),
        noise=jnp.asarray(case.inputs["sample_noise"]),
        steps=steps,
    )
    assert_close("actions_steps*", actions, case.outputs[f"actions_steps{steps}"], of_largest=1e-5)


def test_unrolled_layers_give_the_same_context_and_actions(name: str) -> None:
    """`Policy` runs layers apart, shares first projections of all steps and cuts the last block."""
    case = golden.load(name)
    model, params = xvla_jax.XVLA(case.config, unroll=True), inference_params(case.params)

    @jax.jit
    def act(params: Any, b: Any, noise: jax.Array) -> tuple[Any, jax.Array]:
        views = (b["pixels"], b["view_mask"], b["input_ids"])
        context = cast(Context, model.apply({"params": params}, *views, method="encode"))
        state = (b["proprio"], b["domain_id"])
        return context, flow.sample(model, params, context, *state, noise=noise, steps=10)

    context, actions = act(params, case.batch(), jnp.asarray(case.inputs["sample_noise"]))
    features = case.outputs["vlm_features"]
    assert_close("vlm_features", context.vlm_features, features, of_largest=1e-5)
    assert_close("actions_steps*", actions, case.outputs["actions_steps10"], of_largest=1e-5)


def test_views_beyond_the_pixels_count_as_absent(name: str) -> None:
    """Slots that no sample fills may be left out of ``pixels``: same context, less work."""
    case = golden.load(name)
    mask = np.asarray(case.inputs["image_mask"]).copy()
    mask[:, -1] = False
    full = case.encode_views(mask.shape[1], mask)
    short = case.encode_views(mask.shape[1] - 1, mask)
    for a, b in zip(full.__dict__.values(), short.__dict__.values(), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_lerobot_native_layout_gives_the_same_parameters(name: str, tmp_path: Path) -> None:
    source = golden.FOLDER / name
    if not (source / "lerobot_native.safetensors").is_file():
        pytest.skip("no LeRobot file of this case: LeRobot cannot load its image_feature_source")
    shutil.copy(source / "config.json", tmp_path)
    shutil.copy(source / "lerobot_native.safetensors", tmp_path / "model.safetensors")
    _, params = xvla_jax.load_pretrained(tmp_path)
    same = jax.tree.map(np.array_equal, params, dict(golden.load(name).params))
    assert all(jax.tree.leaves(same))
