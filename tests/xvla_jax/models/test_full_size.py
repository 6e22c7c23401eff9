"""The released size, by shapes alone: nothing is allocated."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp

from configs import models
from tests.xvla_jax import golden
from xvla_jax.checkpoints import torch_tensors
from xvla_jax.config import XVLAConfig
from xvla_jax.models.xvla import XVLA, abstract_params

_BUFFERS = {"vlm.visual_temporal_embed.pos_idx_to_embed", "vlm.language_model.final_logits_bias"}


def _config() -> XVLAConfig:
    return XVLAConfig.from_dict(json.loads((golden.FOLDER / "full_size_config.json").read_text()))


def test_parameter_count() -> None:
    leaves = jax.tree.leaves(abstract_params(_config()))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == 879_482_456


def test_who_changes_the_tree_changes_its_own() -> None:
    tree = abstract_params(_config())
    tree["vlm"].clear()
    assert abstract_params(_config())["vlm"]


def test_tensors_of_the_released_file() -> None:
    config = _config()
    table = (golden.FOLDER / "full_size_tensors.tsv").read_text().splitlines()
    expected = {
        name: json.loads(shape) for name, shape, dtype in (line.split("\t") for line in table)
    }
    assert len(expected) == 903
    ours = {
        name: list(shape)
        for name, shape in torch_tensors.torch_shapes(config, abstract_params(config)).items()
    }
    assert ours == {name: shape for name, shape in expected.items() if name not in _BUFFERS}


def test_262_tokens_reach_the_head() -> None:
    config = _config()
    model, params = XVLA(config), abstract_params(config)
    shaped = jax.ShapeDtypeStruct
    context = jax.eval_shape(
        lambda *a: model.apply({"params": a[0]}, *a[1:], method="encode"),
        params,
        shaped((1, 3, 224, 224, 3), jnp.float32),
        shaped((1, 3), bool),
        shaped((1, 50), jnp.int32),
    )
    assert context.vlm_features.shape == (1, 100, 1024)
    assert context.aux_visual_inputs.shape == (1, 100, 1024)
    _, captured = jax.eval_shape(
        lambda p, c, x, s, d, t: model.apply(
            {"params": p},
            c,
            x,
            s,
            d,
            t,
            method="denoise",
            capture_intermediates=True,
            mutable=["intermediates"],
        ),
        params,
        context,
        shaped((1, 30, 20), jnp.float32),
        shaped((1, 20), jnp.float32),
        shaped((1,), jnp.int32),
        shaped((1,), jnp.float32),
    )
    blocks = captured["intermediates"]["transformer"]["blocks"]["__call__"][0][0]
    assert blocks.shape == (24, 1, 262, 1024)


def test_our_released_shape_is_the_released_config() -> None:
    assert XVLAConfig.from_dict(models.model_dict(models.RELEASED, action_mode="ee6d")) == _config()
