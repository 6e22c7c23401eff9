"""Colour jitter on the device, against Pillow and by eye."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from data.faults import Faults
from data.rows.table import dataset
from data.stream.batches import BatchForm, Collator, choose_jitter
from data.stream.stream import Sample
from data.stream.windows import EpisodeSamples
from tests.data.fakes import tokenize
from tests.xvla_jax import tiny
from tests.xvla_jax.pillow_jitter import pillow_jittered
from xvla_jax import flow, sharding
from xvla_jax.training.augment import blend, jittered
from xvla_jax.training.loop import DeviceFeed, Placement
from xvla_jax.training.step import make_train_step

ORDERS = np.array(list(itertools.permutations(range(3))), np.int32)
# With these, product and sum rounded at once give other pixels than rounded one after the other.
DELICATE = (
    *(1.0095694065093994, 1.0205479860305786, 0.8076922297477722, 1.1452991962432861),
    *(0.9999991059303284, 1.036734700202942, 1.0430622100830078, 0.9479166865348816),
)


def _run(function: Any, *arguments: Any) -> np.ndarray:
    """Compiled as in earnest: with the setting of tests/conftest.py, XLA might fuse less."""
    options: dict[str, str | bool] = {"xla_backend_optimization_level": "3"}
    program = jax.jit(function).lower(*arguments).compile(compiler_options=options)
    return np.asarray(program(*arguments))


def _pictures(rng: np.random.Generator, shape: tuple[int, ...], side: int) -> np.ndarray:
    return rng.integers(0, 256, (*shape, side, side, 3), np.uint8)


def _draws(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    factors = rng.uniform(0.8, 1.2, (*shape, 3)).astype(np.float32)
    return factors, rng.permuted(np.tile(np.arange(3, dtype=np.int32), (*shape, 1)), axis=-1)


def test_random_pictures_and_factors() -> None:
    rng = np.random.default_rng(0)
    images, (factors, order) = _pictures(rng, (60, 3), 48), _draws(rng, (60, 3))
    expected = pillow_jittered(images, factors, order)
    assert (expected != images).mean() > 0.8
    np.testing.assert_array_equal(_run(jittered, images, factors, order), expected)


def test_factors_whose_products_lie_beside_integers() -> None:
    rng = np.random.default_rng(1)
    ratios = [k / n for n in (5, 7, 17, 51, 85, 128, 255) for k in range(round(0.8 * n), 2 * n)]
    exact = np.array(ratios, np.float32)
    near = [np.nextafter(exact, np.float32(0)), exact, np.nextafter(exact, np.float32(9))]
    values = np.concatenate([np.array(DELICATE, np.float32), *near])
    values = values[: len(values) // 6 * 6].reshape(-1, 6)  # [B, V = orders]
    factors = np.repeat(values[..., None], 3, axis=-1)
    order = np.broadcast_to(ORDERS, factors.shape)
    images = _pictures(rng, values.shape, 16)
    expected = pillow_jittered(images, factors, order)
    np.testing.assert_array_equal(_run(jittered, images, factors, order), expected)


@pytest.mark.parametrize("factor", [*DELICATE, 1e-3, 0.5, 0.8, 1.0, 1.2, 10.0])
def test_every_pair_of_numbers_blends_as_pillow_blends(factor: float) -> None:
    base, channel = np.indices((256, 256)).astype(np.uint8)
    blended = Image.blend(Image.fromarray(base), Image.fromarray(channel), factor)
    expected = np.asarray(blended)
    np.testing.assert_array_equal(_run(blend, base, channel, np.float32(factor)), expected)
    difference = channel.astype(np.float64) - base
    once = (base + np.float64(np.float32(factor)) * difference).astype(np.float32)
    fused = np.clip(once, 0, 255).astype(np.uint8)
    assert (fused != expected).any() or factor not in DELICATE


@pytest.mark.parametrize("side", [1, 2, 3, 224])
def test_flat_white_and_uneven_pictures(side: int) -> None:
    """Means at a half, the largest sum, and images that one pixel fills."""
    rng = np.random.default_rng(2)
    flat = np.full((6, side, side, 3), 255, np.uint8)
    flat[1] = 0
    flat[2, : side // 2] = 254  # a mean of 254.5 where the side is even
    flat[3] = rng.integers(0, 2, (side, side, 1))
    flat[4:] = rng.integers(0, 256, (2, side, side, 3))
    factors, order = _draws(rng, (6, 2))
    factors[:, 1] = [0.1, 3.0, 1.0]  # cuts off at both ends
    images = np.stack([flat, flat], axis=1)
    expected = pillow_jittered(images, factors, order)
    np.testing.assert_array_equal(_run(jittered, images, factors, order), expected)


def test_one_pixel_by_eye() -> None:
    # grey is 0.299 * 200 + 0.587 * 100 = 118.5, rounded to 119; the mean of this image is the same
    images = np.array([[[[[200, 100, 0]]]] * 3], np.uint8)
    factors = np.where(np.eye(3) == 1, 0.8, 1.0).astype(np.float32)[None]
    pixels = jittered(jnp.asarray(images), jnp.asarray(factors), jnp.asarray(ORDERS[None, :3]))
    assert pixels[0, :, 0, 0].tolist() == [[160, 80, 0], [183, 103, 23], [183, 103, 23]]


def test_factors_of_one_change_nothing() -> None:
    images = _pictures(np.random.default_rng(3), (1, 6), 32)
    ones = np.ones((1, 6, 3), np.float32)
    np.testing.assert_array_equal(_run(jittered, images, ones, ORDERS[None]), images)


def collated(seed: int | None) -> tuple[dict[str, np.ndarray], list[Sample]]:
    """A batch of eight samples of a row that jitters, three views of random images."""
    rng = np.random.default_rng(4)
    row = dataset("agiworld-on-site-pour")
    assert row.augment == "jitter"
    pictures = np.empty((3, 8), object)
    for place in np.ndindex(3, 8):
        pictures[place] = rng.integers(0, 256, (32, 32, 3), np.uint8)
    episode = EpisodeSamples(
        dataset=row.name,
        episode="e",
        instruction="pour",
        paraphrases=(),
        num_frames=8,
        frames=np.arange(8),
        proprio=np.zeros((8, 20), np.float32),
        actions=np.zeros((8, 30, 20), np.float32),
        images=tuple(pictures),
    )
    samples = [Sample(row, episode, number, number, lane=1) for number in range(8)]
    collator = Collator(BatchForm(3, 32, tokenize), faults=Faults(0), seed=seed, jitters=True)
    batch, _ = collator([iter([sample]) for sample in samples])
    collator.close()
    return batch, samples


def test_a_batch_is_what_the_host_made_of_it() -> None:
    """The host's way: Pillow applies each view's draw, whose factors are of 64 bits."""
    batch, samples = collated(seed=6)
    expected = batch["images"].copy()
    for place in np.argwhere(batch["view_mask"]):
        row, view = place.tolist()
        jitter = choose_jitter(samples[row], view, 6)
        factors, order = np.array(jitter.factors), np.array(jitter.order)
        expected[row, view] = pillow_jittered(batch["images"][row, view], factors, order)
    pixels = jax.jit(jittered)(batch["images"], batch["jitter"], batch["jitter_order"])
    np.testing.assert_array_equal(pixels, expected)
    assert not np.array_equal(expected, batch["images"])
    plain, _ = collated(seed=None)
    assert (plain["jitter"] == 1).all()


def test_eight_devices_make_what_one_makes() -> None:
    rng = np.random.default_rng(5)
    factors, order = _draws(rng, (16, 2))
    host = {"images": _pictures(rng, (16, 2), 32), "jitter": factors, "jitter_order": order}
    run, pixels = jax.jit(jittered), []
    for data, fsdp in ((1, 1), (2, 4)):
        placed = sharding.global_batch(host, tiny.mesh(data, fsdp))
        pixels.append(np.asarray(run(*placed.values())))
        text = run.lower(*placed.values()).compile().as_text()
        assert text is not None
        assert "all-" not in text, "an image needs nothing of its neighbours"
        assert "callback" not in text
    np.testing.assert_array_equal(*pixels)
    np.testing.assert_array_equal(pixels[0], pillow_jittered(host["images"], factors, order))


def jitter_fields(size: int = 8) -> dict[str, np.ndarray]:
    factors, order = _draws(np.random.default_rng(6), (size, 3))
    return {"jitter": factors, "jitter_order": order}


def _shown(batch: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Input of the loss in a train step: a sum of weighted pixels, and its random numbers."""

    def show(model: Any, params: Any, batch: Any, *, noise: Any, t: Any, rng: Any) -> Any:
        assert not {"images", "jitter", "jitter_order"} & set(batch)
        pixels = batch["pixels"]
        weights = jnp.arange(pixels.size, dtype=jnp.float32).reshape(pixels.shape) % 7
        drawn = {"noise": noise.sum(), "t": t.sum(), "dropout": jax.random.uniform(rng)}
        terms = {"pixels": params["w"] * (pixels * weights).sum()} | drawn
        return {name: jnp.broadcast_to(value, t.shape) for name, value in terms.items()}

    monkeypatch.setattr(flow, "sample_losses", show)
    state = tiny.ONE_WEIGHT.fresh({"w": jnp.ones(())}).replace(step=jnp.int32(3))
    run = make_train_step(tiny.ONE_WEIGHT, tiny.PROCESSOR, seed=0)
    placed = sharding.global_batch(batch, tiny.mesh(1, 1))
    text = run.lower(state, placed).as_text()
    assert "callback" not in text
    _, metrics = run(state, placed)
    return {name: float(metrics[name]) for name in ("pixels", "noise", "t", "dropout")}


def test_the_train_step_jitters_and_draws_what_it_drew(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny.batch()
    without = _shown(plain, monkeypatch)
    fields = jitter_fields()
    jittering = _shown(plain | fields, monkeypatch)
    pixels = pillow_jittered(plain["images"], fields["jitter"], fields["jitter_order"])
    by_hand = _shown(plain | {"images": pixels}, monkeypatch)
    assert jittering == by_hand
    assert jittering["pixels"] != without["pixels"]
    chances = ("noise", "t", "dropout")
    assert [jittering[k] for k in chances] == [without[k] for k in chances]


class _Source:
    """One batch for ever."""

    def __init__(self, batch: dict[str, np.ndarray]) -> None:
        self._batch = batch
        self.position: dict[str, Any] = {}
        self.bad_episodes: dict[str, dict[str, int]] = {}
        self.left_out: dict[str, dict[str, int]] = {}
        self.samples = ["row"] * 8

    def __next__(self) -> dict[str, np.ndarray]:
        return self._batch


def test_the_feed_leaves_out_the_jitter_of_views_that_nobody_fills() -> None:
    source = _Source(tiny.batch() | jitter_fields())
    with DeviceFeed(source, Placement(tiny.mesh(1, 1), tiny.CONFIG, present_views=2)) as feed:
        batch = next(feed).batch
    for name in ("images", "jitter", "jitter_order"):
        assert batch[name].shape[:2] == (8, 2)
    assert batch["view_mask"].shape == (8, 3)
