"""The share of view slots that a run packs its images into, from the views of its mixture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.sampling import uniforms
from data.stream.stream import StreamShape
from xvla_jax.errors import ConfigError
from xvla_jax.models.packing import places_of

AUTO: Final = "auto"
_ROWS: Final = 1_000_000  # of the stream that are looked at, in complete batches
# Work on an image in the second pass, of that in the first: its forward pass runs again.
_SECOND_PASS: Final = 4 / 3
_LEAST_GAIN: Final = 0.05  # share of the tower's work; for less, auto packs nothing
_MOST_OVERFLOW: Final = 0.5  # share of the steps; beyond it, a stated share is refused


class SourceViews(NamedTuple):
    """The views of a source's samples: all, or the main one alone as often as its row says."""

    weight: float
    views: int
    main_view_share: float = 0.0


def stream_shape(config: Any, batch_size: int, *, lanes: int = 0) -> StreamShape:
    """Returns the shape of the stream of a config; without ``lanes``, with those of the config."""
    return StreamShape(
        seed=config.seed,
        batch_size=batch_size,
        num_actions=config.model.num_actions,
        shuffle_buffer=config.data.shuffle_buffer,
        lanes=lanes or config.data.lanes,
        shuffle_per=config.data.shuffle_per,
        deal=config.data.deal,
    )


@dataclasses.dataclass(frozen=True)
class Load:
    """Images that the devices of a run have in the batches of its stream.

    Attributes:
        images: of each device in each part of a batch, ``int64[batches, parts, devices]``.
        slots: of a device in a part.
    """

    images: NDArray[np.int64]
    slots: int

    def overflow(self, places: int) -> float:
        """Returns the share of parts in which a device has more images than places."""
        return float((self.images.max(axis=-1) > places).mean())


def view_load(
    sources: Sequence[SourceViews], shape: StreamShape, *, devices: int, parts: int
) -> Load:
    """Deals the first batches of a stream and counts the images of each device.

    Args:
        sources: of the mixture.
        shape: of the stream.
        devices: that share a batch.
        parts: into which a batch is cut, ``config.accumulate``.

    Raises:
        ConfigError: the devices do not divide a part.
    """
    if shape.batch_size % (devices * parts):
        raise ConfigError(
            f"config.packed_views packs the images of each device; config.batch_size is "
            f"{shape.batch_size}, but a multiple of {devices} devices x config.accumulate {parts} "
            "is needed"
        )
    slots = max(source.views for source in sources)
    batches = max(_ROWS // shape.batch_size, 100)
    mixer = shape.mixer([source.weight for source in sources], [s.views for s in sources])
    chosen, _ = mixer.assign(batches * shape.batch_size)
    views = np.array([source.views for source in sources])[chosen]
    main = np.array([source.main_view_share for source in sources])[chosen]
    if main.any():
        views = np.where(uniforms(len(views), shape.seed, "views of a plan") < main, 1, views)
    # Rows of a batch follow each other on a device, parts take every so many of them.
    rows = shape.batch_size // devices // parts
    by_device = views.reshape(batches, devices, rows, parts).sum(axis=2)
    return Load(by_device.swapaxes(1, 2), rows * slots)


@dataclasses.dataclass(frozen=True)
class PackedViews:
    """The share that is packed, and what it comes to.

    Attributes:
        share: of the slots of a device; 0 packs nothing.
        load: of the mixture.
    """

    share: float
    load: Load

    @property
    def work(self) -> float:
        """Images that the tower computes in a step on average, of those of the padded form."""
        return _work(self.load, places_of(self.share, self.load.slots)) if self.share else 1.0

    def __str__(self) -> str:
        """One line: what is packed, and how often it does not suffice."""
        slots, filled = self.load.slots, self.load.images.mean()
        if not self.share:
            return f"packed views: none; the mixture fills {filled:.1f} of a device's {slots} slots"
        places = places_of(self.share, slots)
        return (
            f"packed views: {places} places for a device's {slots} slots, of which the mixture "
            f"fills {filled:.1f}; {self.load.overflow(places):.1%} of the steps need a second "
            f"pass; the vision tower does {self.work:.1%} of the padded work"
        )


def packed_mixture(
    config: Any,
    sources: Sequence[SourceViews],
    batch_size: int,
    *,
    devices: int,
    parts: int,
    most: float = _MOST_OVERFLOW,
) -> PackedViews:
    """Reads ``config.packed_views`` as `packed_views` does, for the first batches of a stream.

    Args:
        config: of the run.
        sources: views of the mixture.
        batch_size: over all devices.
        devices: see `view_load`.
        parts: likewise.
        most: see `packed_views`.
    """
    load = view_load(sources, stream_shape(config, batch_size), devices=devices, parts=parts)
    return packed_views(config.packed_views, load, most=most)


def packed_views(text: str, load: Load, *, most: float = _MOST_OVERFLOW) -> PackedViews:
    """Reads ``config.packed_views`` where it is not empty: auto, or a share of the slots.

    Args:
        text: the value.
        load: of the mixture.
        most: share of the steps that may need a second pass.

    Raises:
        ConfigError: it is neither, or most steps would have more images than places.
    """
    if text == AUTO:
        filled = max(int(load.images.mean()), 1)
        best = min(range(filled, load.slots + 1), key=lambda places: _work(load, places))
        share = best / load.slots if _work(load, best) <= 1 - _LEAST_GAIN else 0.0
        return PackedViews(share, load)
    share = stated_share(text)
    places = places_of(share, load.slots)
    if load.overflow(places) > most:
        raise ConfigError(
            f"config.packed_views is {text}, {places} places for a device's {load.slots} slots, of "
            f"which the mixture fills {load.images.mean():.1f}: {load.overflow(places):.0%} of the "
            f"steps would need a second pass; take more, {AUTO}, or config.data.deal=even"
        )
    return PackedViews(share, load)


def stated_share(text: str) -> float:
    """Reads a share.

    Raises:
        ConfigError: it is no number above 0 and at most 1.
    """
    try:
        share = float(text)
    except ValueError as error:
        raise ConfigError(
            f"config.packed_views is {text!r}; allowed are {AUTO}, a share of the view slots such "
            "as 0.7, or nothing"
        ) from error
    if not 0.0 < share <= 1.0:
        raise ConfigError(
            f"config.packed_views is {text}; a share of the view slots is expected: above 0, at "
            "most 1; where nothing is to be packed, leave the field empty"
        )
    return share


def _work(load: Load, places: int) -> float:
    again = load.overflow(places) * (load.slots - places) * _SECOND_PASS
    return (places + again) / load.slots
