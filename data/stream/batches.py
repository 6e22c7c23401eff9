"""Batches made ahead in a thread, and the position behind each."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.faults import BadEpisodeError, Faults, attempt
from data.images import Fit, ImageCache, UInt8, Views, load_image
from data.jitter import AUGMENTS, UNCHANGED, Jitter
from data.poses import ACTION_WIDTH
from data.sampling import Mixer, uniforms
from data.stream.position import check_position, cursors_of, position_of, stream_identity
from data.stream.stream import Counts, Cursor, Sample, SourceStream, StreamShape
from data.trajectory import Images, Reader

Batch = dict[str, NDArray[Any]]
Tokenize = Callable[[list[str]], NDArray[np.int32]]

KEPT_INSTRUCTIONS = 2**16  # token ids in memory; beyond, all are made anew


class Collator:
    """Makes batches; keeps the token ids of instructions, and decoded images up to `cache_mb`.

    `seed` decides what data/stream/batches.py draws; None leaves every sample as recorded. `jitters`:
    batches have the jitter fields, also where nothing is drawn. `fit`: as `load_image` has it.
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
        """The batch of the first sample of each draw, or of the next whose images are good.

        Gives the samples too.

        Raises:
            TooManyBadEpisodesError: more than allowed have images that cannot be decoded.
            BadEpisodeError: no sample of a draw has good images.
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

    def _load(self, sample: Sample, encoded: Images) -> UInt8:
        return load_image(
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


def choose_instruction(sample: Sample, seed: int | None) -> str:
    """The late instruction of the row, a paraphrase, or the text of the sample's first frame.

    X-VLA keeps a text once drawn for the rest of the episode, early frames included; here each
    sample draws anew.
    """
    spec, episode = sample.spec, sample.episode
    text, paraphrases = episode.text(sample.row)
    if seed is None or not (spec.late_instruction or paraphrases):
        return text
    drawn = uniforms(3, seed, *sample.visit, "text").tolist()
    late = spec.late_instruction
    if late is not None:
        frame, num_frames = int(episode.frames[sample.row]), episode.num_frames
        after = num_frames // 2 if late.after_frame is None else late.after_frame
        if frame > after and drawn[0] < frame / num_frames:
            return late.text
    if not paraphrases or drawn[1] < spec.original_text_share:
        return text
    return paraphrases[int(drawn[2] * len(paraphrases))]


def choose_num_views(sample: Sample, seed: int | None) -> int:
    """All views, or the main one alone as often as the row says."""
    spec = sample.spec
    if seed is None or spec.main_view_share == 0:
        return len(spec.views)
    (drawn,) = uniforms(1, seed, *sample.visit, "views")
    return 1 if drawn < spec.main_view_share else len(spec.views)


def choose_jitter(sample: Sample, view: int, seed: int | None) -> Jitter:
    """What the device is to do with the colours of view number `view`, as the row augments."""
    if seed is None:
        return UNCHANGED
    return AUGMENTS[sample.spec.augment](seed, *sample.visit, "jitter", view)


Cursors = list[tuple[str, int, Cursor]]  # dataset, lane, cursor


class Made(NamedTuple):
    """A batch, its samples, and where its streams stand behind it."""

    batch: Batch
    samples: list[str]
    cursors: Cursors


def rows_of_host(host: int, hosts: int, batch_size: int) -> slice:
    """The rows of a global batch that a host makes."""
    if not 0 <= host < hosts or batch_size % hosts:
        raise ValueError(f"host {host} of {hosts} cannot share a batch of {batch_size} equally")
    return slice(host * batch_size // hosts, (host + 1) * batch_size // hosts)


class BatchMaker:
    """Makes one batch after the other: this host's rows of the global ones."""

    def __init__(
        self,
        sources: Sequence[tuple[Reader, float]],
        shape: StreamShape,
        collator: Collator,
        faults: Faults,
        *,
        rows: slice,
        start_step: int,
        position: Mapping[str, Any] | None,
        threads: int,
    ) -> None:
        """Begins to read at `start_step`, or at a position (data/stream/position.py) in its place.

        Raises:
            ValueError: the position is of another stream, or lanes do not divide the batch.
        """
        self.faults = faults
        self.identity = stream_identity(sources, shape)
        if position is not None:
            check_position(position, self.identity)
        self.step: int = start_step if position is None else position["step"]
        weights = [weight for _, weight in sources]
        self._mixer = Mixer(weights, shape.seed, batch_size=shape.batch_size, lanes=shape.lanes)
        self._mixer.seek(self.step * shape.batch_size)
        firsts = self._mixer.dealt
        self._collator = collator
        self._rows = rows
        self._lanes = [
            row * shape.lanes // shape.batch_size for row in range(rows.start, rows.stop)
        ]
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._streams: dict[tuple[int, int], SourceStream] = {}
        for number, (reader, _) in enumerate(sources):
            cursors = cursors_of(position, reader.spec.name, shape.lanes)
            counts = Counts(len(reader.episodes_per_part))
            for lane in sorted(set(self._lanes)):
                self._streams[number, lane] = SourceStream(
                    reader,
                    shape,
                    lane,
                    pool=self._pool,
                    faults=faults,
                    counts=counts,
                    first=int(firsts[number, lane]),
                    cursor=cursors[lane],
                )

    def __call__(self) -> Made:
        """The next batch."""
        chosen, numbers = self._mixer.assign(self.identity["batch_size"])
        mine = zip(
            chosen[self._rows].tolist(), self._lanes, numbers[self._rows].tolist(), strict=True
        )
        draws = [self._streams[source, lane].block(n).from_here(n) for source, lane, n in mine]
        batch, samples = self._collator(draws)
        return Made(batch, [str(sample) for sample in samples], self.cursors())

    def cursors(self) -> Cursors:
        """Where the streams stand."""
        return [(s.spec.name, s.lane, s.cursor) for s in self._streams.values()]

    def close(self) -> None:
        """Read nothing more, and end the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._collator.close()


class Batches(Iterator[Batch]):
    """Iterator over batches. Use as a context manager, or `close` it.

    Attributes:
        step: number of the batch that comes next.
        samples: dataset, episode and frame of each row of the last batch.
        waited_s: seconds that the last `next` had to wait.
    """

    def __init__(self, maker: BatchMaker, *, prefetch: int) -> None:
        """Begins to make `prefetch` batches."""
        self.step = maker.step
        self.waited_s = 0.0
        self.samples: list[str] = []
        self._maker = maker
        self._cursors = maker.cursors()
        self._making = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._ahead: deque[Future[Made]] = deque(
            self._making.submit(maker) for _ in range(prefetch)
        )

    def __next__(self) -> Batch:
        began = time.monotonic()
        # taken off only when it is there: Ctrl-C loses no batch, and an error stays an error
        batch, self.samples, self._cursors = self._ahead[0].result()
        self._ahead.popleft()
        self._ahead.append(self._making.submit(self._maker))
        self.step += 1
        self.waited_s = time.monotonic() - began
        return batch

    @property
    def position(self) -> dict[str, Any]:
        """Where the stream stands, as plain JSON values; hand it to `batches` to go on there.

        It has the cursors of this host's lanes only; `data.stream.position.merge_positions` joins hosts.
        """
        return position_of(self._maker.identity, self.step, self._cursors)

    @property
    def bad_episodes(self) -> dict[str, dict[str, int]]:
        """Dataset -> kind of fault -> episodes left out, or with images left out, so far."""
        return self._maker.faults.counts

    @property
    def left_out(self) -> dict[str, dict[str, int]]:
        """Dataset -> kind -> episodes (or frames) that its row leaves out, so far; not bad ones."""
        return self._maker.faults.left_out

    def close(self) -> None:
        """End all threads; batches not taken are lost."""
        self._making.shutdown(wait=True, cancel_futures=True)
        self._maker.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
