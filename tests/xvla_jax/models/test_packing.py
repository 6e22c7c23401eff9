"""Packed views give the numbers of the padded form, whatever images a batch has."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax.batch import normalise
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError
from xvla_jax.models.florence import Florence
from xvla_jax.models.packing import Packing, check_share, pack, packing_of, places_of, unpack
from xvla_jax.models.xvla import abstract_params

# images of each of 8 samples of two slots: 11 fit in the 12 places of a share of 3 / 4, 14 do not
FITTING, OVERFLOWING = (1, 2, 1, 1, 2, 1, 1, 2), (2, 2, 1, 1, 2, 2, 2, 2)
_SHARE = 0.75


def masks(counts: tuple[int, ...]) -> np.ndarray:
    """The view mask of samples with so many images, three slots."""
    return np.arange(3) < np.array(counts)[:, None]


# Two pairs of blocks, as a scan has at least.
_PAIRS = dataclasses.replace(tiny.ONE_STAGE.vision, depths=(2,))


@functools.cache
def _tokens_and_gradient(share: float, *, scanned: bool = False) -> Any:
    """Jitted: (parameters, mask) -> gradient of a sum of the tokens of all views, the tokens.

    ``scanned`` is the form for TPU, which computes blocks again in the backward pass.
    """
    form: Any = {"scan_vision": True, "remat": "full"} if scanned else {}
    vision = _PAIRS if scanned else tiny.ONE_STAGE.vision
    model = Florence(vision, tiny.ONE_STAGE.text, packed_views=share, **form)
    pixels = normalise(tiny.batch()["images"][:, :2])

    def loss(params: Any, mask: jax.Array) -> Any:
        tokens: Any = model.apply(
            {"params": params},
            jnp.where(mask[:, :2, None, None, None], pixels, 0.0),
            mask,
            train=True,
            method="view_tokens",
            rngs={"dropout": jax.random.key(5)},
        )
        return (tokens * jnp.cos(jnp.arange(tokens.size)).reshape(tokens.shape)).sum(), tokens

    return jax.jit(jax.grad(loss, has_aux=True))


@pytest.mark.parametrize("counts", [FITTING, OVERFLOWING], ids=["fitting", "overflowing"])
def test_tokens_and_gradients_are_those_of_the_padded_form(counts: tuple[int, ...]) -> None:
    mask = masks(counts)
    packed = _tokens_and_gradient(_SHARE)(_params(), mask)
    _assert_equal(packed, _tokens_and_gradient(0.0)(_params(), mask))


@pytest.mark.slow
def test_blocks_in_a_scan_draw_for_the_slots_of_packed_images_too() -> None:
    config = dataclasses.replace(tiny.ONE_STAGE, vision=_PAIRS)
    packed, padded = (_tokens_and_gradient(share, scanned=True) for share in (_SHARE, 0.0))
    for counts in (FITTING, OVERFLOWING):
        _assert_equal(*(run(_params(config), masks(counts)) for run in (packed, padded)))


def _assert_equal(packed: Any, padded: Any) -> None:
    (gradient, tokens), (padded_gradient, padded_tokens) = packed, padded
    # Drop path has dropped some branch of every other image: with others' draws none would match.
    np.testing.assert_allclose(tokens, padded_tokens, rtol=0, atol=1e-5)
    for ours, theirs in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(padded_gradient), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * float(abs(theirs).max()))


@functools.cache
def _params(config: XVLAConfig = tiny.ONE_STAGE) -> Any:
    shapes = abstract_params(config)["vlm"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)


def test_absent_views_are_zero_tokens() -> None:
    _, tokens = _tokens_and_gradient(_SHARE)(_params(), masks(FITTING))
    shown = np.asarray(tokens).reshape(8, 3, -1).any(axis=-1)
    np.testing.assert_array_equal(shown, masks(FITTING))


def test_each_device_packs_its_own_images_in_their_order() -> None:
    mask = masks(FITTING)[:, :2]
    with jax.set_mesh(tiny.mesh(2, 1)):
        packing = packing_of(jnp.asarray(mask), _SHARE)
        assert packing is not None
        slots = jnp.arange(16)
        packed = pack(slots, packing.order, packing.places)
        rest = pack(slots, jnp.roll(packing.order, -packing.places, axis=1), 2)
        back = unpack(packed, rest, packing.order)
    # slots 0 .. 7 are of the first device's four samples, which have 5 images
    np.testing.assert_array_equal(packed, [0, 2, 3, 4, 6, 1, 8, 9, 10, 12, 14, 15])
    np.testing.assert_array_equal(rest, [5, 7, 11, 13])
    np.testing.assert_array_equal(back, slots)
    assert (packing.places, packing.images.tolist()) == (6, [5, 6])
    assert not packing.overflow
    assert float(packing.unused) == pytest.approx(1 / 12)


def test_an_overflow_on_one_device_is_one_for_all() -> None:
    images = jnp.array([2, 4, 3], jnp.int32)
    assert Packing(jnp.zeros((3, 6), jnp.int32), images, places=3).overflow
    assert not Packing(jnp.zeros((3, 6), jnp.int32), images, places=4).overflow


@pytest.mark.parametrize(
    ("share", "slots", "places"), [(0.6, 5, 3), (0.61, 5, 4), (0.01, 5, 1), (1.0, 5, 5)]
)
def test_a_share_is_rounded_up_to_places(share: float, slots: int, places: int) -> None:
    assert places_of(share, slots) == places


def test_nothing_is_packed_where_it_leaves_no_slot_out() -> None:
    mask = jnp.ones((8, 2), bool)
    assert packing_of(mask, 0.0) is None
    assert packing_of(mask, 0.95) is None, "15.2 of 16 places"
    with jax.set_mesh(tiny.mesh(8, 1)):
        assert packing_of(mask[:4], 0.5) is None, "4 samples on 8 devices"


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_number_that_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"config.packed_views is .*; a share"):
        check_share(share)
