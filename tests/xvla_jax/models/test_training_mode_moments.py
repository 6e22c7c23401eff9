"""Training mode by its numbers: what each place drops, and moments against the original model.

``tests/fixtures/training_moments`` holds mean, variance and fourth central moment of what the
original code computes in training mode on case ee6d, over 51,200 draws of its dropout and drop
path; weights, observation, noise and times are fixed.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import xvla_jax
from tests.xvla_jax import golden
from tests.xvla_jax.random_sites import HEAD_RATE, RATES, with_rates
from xvla_jax import flow
from xvla_jax.actions import action_space
from xvla_jax.models.davit import DropPath
from xvla_jax.models.florence import ImageProjector, TextEncoder
from xvla_jax.models.kernels import drop
from xvla_jax.models.layers import Dropout

pytestmark = pytest.mark.slow

_FILE = golden.FOLDER.parent / "training_moments" / "ee6d.npz"
_TENSORS = ("image_features_valid", "vlm_features", "prediction")
_COPIES = 64  # of the two observations in a batch: draws of one pass
_SPIED = 64  # samples (images in the tower) whose masks are looked at

# Where the reference drops -> its rate under RATES, in case ee6d.
_RATE_AT: Mapping[str, float] = {
    "vlm/text_encoder/embed_dropout": 0.1,
    "vlm/text_encoder/layers/self_attn/Dropout_0": 0.3,
    "vlm/text_encoder/layers/Dropout_0": 0.1,
    "vlm/text_encoder/layers/mlp/Dropout_0": 0.2,
    "vlm/text_encoder/layers/mlp/Dropout_1": 0.1,
    "transformer/blocks/attn/drop": HEAD_RATE,
    "transformer/blocks/mlp/Dropout_0": HEAD_RATE,
    "transformer/blocks/mlp/Dropout_1": HEAD_RATE,
} | {
    f"vlm/vision_tower/stage{stage}_{kind}{pair}/DropPath_0": 0.4 * block / 9
    for block, (stage, pair, kind) in enumerate(
        (stage, pair, kind)
        for stage, depth in enumerate((1, 1, 2, 1))
        for pair in range(depth)
        for kind in ("spatial", "channel")
    )
    if block  # the first has rate 0
}


_CALLED: list[nn.Module] = []  # the dropout that is being called, if any


def _show_drops(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    """Keeps what goes into and comes out of the first samples of dropout and drop path.

    Attention draws a mask of its weights and applies it elsewhere: ones stand for the weights.
    """
    module: Any = context.module
    method = context.method_name
    if not (isinstance(module, Dropout | DropPath) and module.rate > 0):
        return call(*args, **kwargs)
    if method == "__call__":
        _CALLED.append(module)
        result = call(*args, **kwargs)
        _CALLED.pop()
        module.sow("intermediates", "in_and_out", (args[0][:_SPIED], result[:_SPIED]))
        return result
    result = call(*args, **kwargs)
    if method == "mask" and not _CALLED:
        ones = jnp.ones(result[:_SPIED].shape)
        dropped = drop(ones, result[:_SPIED], float(module.rate))
        module.sow("intermediates", "in_and_out", (ones, dropped))
    return result


def _is_shown(module: nn.Module, method: str) -> bool:
    return method == "__call__" and isinstance(module, ImageProjector | TextEncoder)


@functools.cache
def _program() -> Any:
    """The pass in training mode: a key -> values ``[copies, ...]``, and the drops."""
    case = golden.load("ee6d")
    model = xvla_jax.XVLA(with_rates(case.config, **RATES))
    batch, space = case.batch(), action_space(case.config)
    t = flow.stratified_time(jnp.asarray(case.inputs["train_u"][0]), len(case.pixels))
    noisy = flow.interpolate(jnp.asarray(case.inputs["train_noise"][0]), batch["actions"], t)
    proprio, noisy = space.preprocess(batch["proprio"], noisy)
    images = (batch["pixels"], batch["view_mask"], batch["input_ids"])
    tiled = [
        jnp.concatenate([x] * _COPIES) for x in (*images, noisy, proprio, batch["domain_id"], t)
    ]
    valid = np.flatnonzero(case.inputs["image_mask"])

    def run(key: jax.Array) -> Any:
        with nn.intercept_methods(_show_drops):
            prediction, state = model.apply(
                {"params": case.params},
                *tiled,
                train=True,
                rngs={"dropout": key},
                mutable=["intermediates"],
                capture_intermediates=_is_shown,
            )
        shown = state["intermediates"]
        values = {
            "prediction": prediction,
            "vlm_features": shown["vlm"]["text_encoder"].pop("__call__")[0],
            "image_features_valid": shown["vlm"]["image_projector"].pop("__call__")[0],
        }
        values = {k: v.reshape(_COPIES, -1, *v.shape[1:]) for k, v in values.items()}
        values["image_features_valid"] = values["image_features_valid"][:, valid]
        terms = jax.vmap(space.losses, (0, None))(values["prediction"], batch["actions"])
        return values | {f"loss/{k}": v for k, v in terms.items()}, shown

    # Level 0 of tests/conftest.py takes three times as long to run.
    return jax.jit(run, compiler_options={"xla_backend_optimization_level": 1})


def _draws(passes: int) -> dict[str, np.ndarray]:
    """float64[draws, ...] of every value."""
    actual = [jax.device_get(_program()(jax.random.key(i))[0]) for i in range(passes)]
    return {k: np.concatenate([f[k] for f in actual]).astype(np.float64) for k in actual[0]}


def _places(shown: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, list[Any]]:
    """Place -> (input, output) of each call there; the layers of a scan are calls too."""
    places: dict[str, list[Any]] = {}
    for key, value in shown.items():
        if key == "in_and_out":
            scanned = {"layers", "blocks"} & set(path)
            calls = [zip(*pair, strict=True) if scanned else [pair] for pair in value]
            places["/".join(path)] = [call for several in calls for call in several]
        elif isinstance(value, Mapping):
            places |= _places(value, (*path, key))
    return places


def test_share_scale_and_independence_at_every_place() -> None:
    """Zeros at the rate, the rest times 1 / keep, and no two samples, layers or calls alike."""
    places = _places(jax.device_get(_program()(jax.random.key(0))[1]))
    assert set(places) == set(_RATE_AT)
    for place, rate in _RATE_AT.items():
        # two layers, or attention and MLP of a block
        assert len(places[place]) == (1 if place.endswith("embed_dropout") else 2), place
        kept = []
        for x, y in places[place]:
            mask = y != 0
            np.testing.assert_allclose(y[mask], x[mask] / (1 - rate), rtol=1e-5, err_msg=place)
            if "DropPath" in place:  # all of an image
                assert (mask == mask[:, :1, :1, :1]).all(), place
                mask = mask[:, 0, 0, 0]
            share, error = mask.mean(), math.sqrt(rate * (1 - rate) / mask.size)
            assert abs(share - (1 - rate)) <= 4.5 * error, f"{place}: {share} kept"
            kept.append(mask)
        # neighbours in the batch; the two layers or branches
        for a, b in ((kept[0][:-1], kept[0][1:]), *itertools.pairwise(kept)):
            correlation = np.corrcoef(a.ravel(), b.ravel())[0, 1]
            assert abs(correlation) < 5 / math.sqrt(a.size), f"{place}: not independent"


def test_mean_and_variance_of_the_original() -> None:
    """4,096 draws against 51,200.

    Means and variances, element by element, differ by at most 6 standard errors, by about one in
    the root mean square; those of losses and of total variance, where all places add up, by at most
    4, which is about one per cent of the total variance.
    """
    ours = _draws(64)
    with np.load(_FILE) as file:
        theirs = dict(file)
    for name in _TENSORS:
        change = ours[name] - theirs[f"{name}/evaluation"]
        ours[f"energy/{name}"] = np.square(change).reshape(len(change), -1).mean(1)
    assert {f"{name}/mean" for name in ours} == {name for name in theirs if name.endswith("/mean")}
    for name, x in ours.items():
        counts = 1 / len(x) + 1 / int(theirs["draws"])
        variance, fourth = theirs[f"{name}/variance"], theirs[f"{name}/fourth"]
        errors = {
            "mean": (x.mean(0) - theirs[f"{name}/mean"]) / np.sqrt(variance * counts),
            "variance": (x.var(0) - variance) / np.sqrt((fourth - variance**2) * counts),
        }
        for moment, z in errors.items():
            worst, typical = np.abs(z).max(), math.sqrt(np.square(z).mean())
            assert worst <= (6.0 if z.ndim else 4.0), f"{moment} of {name}: {worst:.1f} std errors"
            if z.ndim:
                assert typical <= 1.3, f"{moment} of {name}: {typical:.2f} std errors rms"
