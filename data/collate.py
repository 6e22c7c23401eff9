"""Samples -> one Batch (door 1): decode, tokenise, stack.

A batch is a dictionary of numpy arrays:

    images      uint8[B, V, S, S, 3] RGB, absent views zero
    view_mask   bool[B, V]
    input_ids   int32[B, L]
    domain_id   int32[B]
    proprio     float32[B, D], joints padded with zeros to the width of the model's head
    actions     float32[B, T, D]

and, where some row of the mixture augments (data/jitter.py), for the train step to apply:

    jitter        float32[B, V, 3] factors of brightness, contrast, saturation; 1 = as it is
    jitter_order  int32[B, V, 3] which of the three comes first, second and third
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.choices import choose_instruction, choose_jitter, choose_num_views
from data.faults import BadEpisodeError, Faults, attempt
from data.images import Fit, ImageCache, UInt8, Views, load_picture
from data.jitter import UNCHANGED
from data.poses import ACTION_WIDTH
from data.stream.stream import Sample
from data.trajectory import Pictures

Batch = dict[str, NDArray[Any]]
Tokenize = Callable[[list[str]], NDArray[np.int32]]

KEPT_INSTRUCTIONS = 2**16  # token ids in memory; beyond, all are made anew


class Collator:
    """Makes batches; keeps the token ids of instructions, and decoded pictures up to `cache_mb`.

    `seed` decides what data/choices.py draws; None leaves every sample as recorded. `jitters`:
    batches have the jitter fields, also where nothing is drawn. `fit`: as `load_picture` has it.
    `action_width` is D; no row of the mixture has more channels.
    """

    def __init__(
        self,
        num_views: int,
        image_size: int,
        tokenize: Tokenize,
        seed: int | None,
        faults: Faults,
        cache_mb: float,
        threads: int,
        jitters: bool,
        fit: Fit | None = None,
        action_width: int = ACTION_WIDTH,
    ) -> None:
        self._num_views = num_views
        self._image_size = image_size
        self._tokenize = tokenize
        self._seed = seed
        self._jitters = jitters
        self._fit = fit
        self._action_width = action_width
        self._faults = faults
        self._token_ids: dict[str, NDArray[np.int32]] = {}
        self._cache = ImageCache(cache_mb)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def __call__(self, draws: Sequence[Iterator[Sample]]) -> tuple[Batch, list[Sample]]:
        """The batch of the first sample of each draw, or of the next whose pictures are good.

        Gives the samples too.

        Raises:
            TooManyBadEpisodesError: more than allowed have pictures that cannot be decoded.
            BadEpisodeError: no sample of a draw has good pictures.
        """
        shape = (len(draws), self._num_views, self._image_size, self._image_size, 3)
        images = np.zeros(shape, np.uint8)
        factors = np.full((*shape[:2], 3), UNCHANGED.factors, np.float32)
        order = np.full((*shape[:2], 3), UNCHANGED.order, np.int32)

        def fill(place: int) -> tuple[Sample, int]:
            sample, views = self._first_good(draws[place])
            for view, pixels in enumerate(views):
                images[place, view] = pixels
                factors[place, view], order[place, view] = choose_jitter(sample, view, self._seed)
            return sample, len(views)

        filled = list(self._pool.map(fill, range(len(draws))))
        samples = [sample for sample, _ in filled]
        present = [num_views for _, num_views in filled]
        texts = [choose_instruction(sample, self._seed) for sample in samples]
        batch = {
            "images": images,
            "view_mask": np.arange(self._num_views) < np.array(present)[:, None],
            "input_ids": self.input_ids(texts),
            "domain_id": np.array([sample.spec.domain_id for sample in samples], np.int32),
            "proprio": self._fitted([sample.episode.proprio[sample.row] for sample in samples]),
            "actions": self._fitted([sample.episode.actions[sample.row] for sample in samples]),
        }
        jitter = {"jitter": factors, "jitter_order": order} if self._jitters else {}
        return batch | jitter, samples

    def close(self) -> None:
        """End the decoding threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fitted(self, rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Rows [..., n] stacked and D wide: readers pad joints to the width of poses."""
        stacked = np.stack(rows)[..., : self._action_width]
        missing = self._action_width - stacked.shape[-1]
        return np.pad(stacked, [(0, 0)] * (stacked.ndim - 1) + [(0, missing)])

    def _first_good(self, draw: Iterator[Sample]) -> tuple[Sample, Views]:
        bad: BadEpisodeError | None = None
        for sample in draw:
            try:
                return sample, self._views(sample, choose_num_views(sample, self._seed))
            except BadEpisodeError as error:
                self._faults.add(error)
                bad = error
        raise bad or ValueError("a draw without samples")

    def _views(self, sample: Sample, count: int) -> Views:
        key = (sample.spec.name, sample.episode.episode, sample.row, count)
        return self._cache.get(key, lambda: self._decode(sample, count))

    def _decode(self, sample: Sample, count: int) -> Views:
        views: list[UInt8] = []
        named = zip(sample.spec.views, sample.episode.images, strict=True)
        for name, encoded in itertools.islice(named, count):
            view = attempt(
                sample.spec.name, sample.episode.episode, partial(self._load, sample, encoded)
            )
            if isinstance(view, BadEpisodeError):
                frame = int(sample.episode.frames[sample.row])
                raise BadEpisodeError(
                    view.dataset,
                    view.episode,
                    "undecodable_picture",
                    f"frame {frame}, {name}: {view.reason}",
                ) from view
            views.append(view)
        return tuple(views)

    def _load(self, sample: Sample, encoded: Pictures) -> UInt8:
        return load_picture(
            encoded[sample.row],
            size=self._image_size,
            channel_order=sample.spec.encoded_channel_order,
            fit=self._fit,
        )

    @property
    def kept_instructions(self) -> int:
        """Instructions whose token ids are in memory."""
        return len(self._token_ids)

    def input_ids(self, instructions: list[str]) -> NDArray[np.int32]:
        """Token ids int32[n, L] of n instructions; each is tokenised when it is new."""
        new = [text for text in dict.fromkeys(instructions) if text not in self._token_ids]
        if len(self._token_ids) + len(new) > KEPT_INSTRUCTIONS:
            self._token_ids.clear()
            new = list(dict.fromkeys(instructions))
        if new:
            ids = np.asarray(self._tokenize(new))
            if ids.dtype != np.int32 or ids.ndim != 2 or len(ids) != len(new):
                raise ValueError(
                    f"tokenize gave {ids.dtype}{list(ids.shape)} for {len(new)} instructions; "
                    f"it must give int32[{len(new)}, L]"
                )
            self._token_ids.update(zip(new, ids, strict=True))
        return np.stack([self._token_ids[text] for text in instructions])
