"""The share of view slots is chosen from the stream that a run will see."""

from __future__ import annotations

import numpy as np
import pytest

from data.stream.stream import StreamShape
from scripts.training.packed_views import Load, PackedViews, SourceViews, packed_views, view_load
from xvla_jax.errors import ConfigError

_MIX = [SourceViews(0.4, 1), SourceViews(0.4, 2), SourceViews(0.2, 3)]  # 1.8 of 3 views


def _shape(deal: str = "even", batch_size: int = 128, lanes: int = 1) -> StreamShape:
    return StreamShape(0, batch_size, 30, 1000, lanes, deal=deal)


def _load(counts: list[int], slots: int = 6) -> Load:
    """One device, one part."""
    return Load(np.array(counts)[:, None, None], slots)


def test_images_are_counted_by_device_and_part() -> None:
    load = view_load([SourceViews(1.0, 2)], _shape(batch_size=16), devices=4, parts=2)
    assert (load.images.shape[1:], load.slots) == ((2, 4), 4)
    assert (load.images == 4).all(), "two samples of two views"
    main = view_load([SourceViews(1.0, 3, 0.5)], _shape(), devices=1, parts=1)
    assert main.images.mean() == pytest.approx(2 * 128, rel=0.01), "half of them show one view"


def test_an_even_deal_needs_little_more_than_the_mean() -> None:
    """A device fills 14.4 of 24 slots; drawn independently, 16 devices differ too much."""
    even = packed_views("auto", view_load(_MIX, _shape(), devices=16, parts=1))
    assert (even.share, even.load.overflow(15)) == (15 / 24, 0.0)
    assert even.load.images.mean() == pytest.approx(14.4, abs=0.01)
    alone = packed_views("auto", view_load(_MIX, _shape("independent"), devices=16, parts=1))
    assert 0.75 < alone.work < 0.85
    assert 0.0 < alone.load.overflow(19) < 0.3


def test_auto_weighs_places_against_second_passes() -> None:
    often = packed_views("auto", _load([3] * 9 + [6]))
    assert (often.share, often.work) == (0.5, pytest.approx(0.5 + 0.1 * 0.5 * 4 / 3))
    full = packed_views("auto", _load([6, 6, 6]))
    assert (full.share, full.work) == (0.0, 1.0)


def test_the_line_says_what_is_packed() -> None:
    assert str(packed_views("auto", _load([3] * 9 + [6]))) == (
        "packed views: 3 places for a device's 6 slots, of which the mixture fills 3.3; 10.0% of "
        "the steps need a second pass; the vision tower does 56.7% of the padded work"
    )
    assert str(PackedViews(0.0, _load([6, 5]))) == (
        "packed views: none; the mixture fills 5.5 of a device's 6 slots"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("some", r"config.packed_views is 'some'; allowed are auto, a share"),
        ("1.2", r"config.packed_views is 1.2; a share of the view slots"),
        ("0", r"config.packed_views is 0; .* above 0, at most 1; .* leave the field empty"),
        ("nan", r"config.packed_views is nan; a share of the view slots"),
        ("0.4", r"0.4, 3 places for .* 6 slots, of which the mixture fills 4.0: 100% of the steps"),
    ],
)
def test_a_value_that_helps_nobody_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        packed_views(text, _load([4, 4]))
    assert packed_views("0.4", _load([4, 4]), most=1.0).share == 0.4


def test_devices_must_divide_the_parts_of_a_batch() -> None:
    with pytest.raises(ConfigError, match=r"batch_size is 12, but a multiple of 8 devices"):
        view_load(_MIX, _shape(batch_size=12), devices=8, parts=1)
