"""Counter-based randomness: every choice is a function of the seed and of its purpose.

It is built on raw 64-bit words of numpy's Philox, whose values numpy guarantees across releases
(those of `Generator.permutation` it does not), so a stream survives an upgrade.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
DRAWS_PER_KEY = 2**16
DEALS = ("independent", "even")  # see `Mixer`
# steps around a circle that leave even gaps
_GOLDEN, _SILVER = (5**0.5 - 1) / 2, 2**0.5 - 1


def random_words(count: int, seed: int, *purpose: str | int) -> NDArray[np.uint64]:
    """`count` random 64-bit words that depend on `seed` and `purpose` alone."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=16).digest()
    key = int.from_bytes(digest, "little")
    return np.random.Philox(key=key).random_raw(count).astype(np.uint64)


def permutation(count: int, seed: int, *purpose: str | int) -> Int64:
    """Random order of 0 .. count - 1 that depends on the arguments alone."""
    return np.argsort(random_words(count, seed, *purpose), kind="stable")


def uniforms(count: int, seed: int, *purpose: str | int) -> Float64:
    """`count` random numbers in [0, 1) that depend on `seed` and `purpose` alone."""
    return _unit(random_words(count, seed, *purpose))


def _unit(words: NDArray[np.uint64]) -> Float64:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Mixer:
    """Deals the positions of the global sample stream to weighted sources and to lanes.

    Position p is row p % batch_size of its batch. Rows are cut into `lanes` equal stretches, and
    each source is a stream of its own in every lane: the k-th position that a lane deals to a
    source takes sample number k of that stream. The source is drawn by weight.

    Positions are drawn independently of each other, or even: then every stretch of a batch's rows
    has the share of each source up to a sample or two, and nearly the same sum of `kinds`. Rows are
    evenly spaced places on a circle of the sources, ordered by kind. The first and the last make a
    pair, and so on, so that sums of kinds differ little; pairs, ordered by that sum, are dealt in
    steps of the golden ratio. What is drawn for a batch is where all this begins, so each row alone
    is as with independent draws.
    """

    def __init__(
        self,
        weights: Sequence[float],
        seed: int,
        *,
        batch_size: int,
        lanes: int,
        kinds: Sequence[int] | None = None,
    ) -> None:
        """Begins at position 0; `kinds` has a number for each source, None draws independently."""
        if lanes < 1 or batch_size % lanes:
            raise ValueError(
                f"lanes is {lanes}; it must divide batch_size {batch_size} (config.data.lanes)"
            )
        if kinds is not None and batch_size % 2:
            raise ValueError(
                f"batch_size is {batch_size}; config.data.deal=even deals pairs, so it must be even"
            )
        self._kinds = None if kinds is None else np.asarray(kinds)
        self._order = np.argsort(np.zeros(len(weights)) if kinds is None else kinds, kind="stable")
        self._edges = np.cumsum(np.asarray(weights, np.float64)[self._order]) / np.sum(weights)
        self._seed = seed
        self._batch_size = batch_size
        self._lanes = lanes
        self._position = 0
        self._dealt = np.zeros((len(weights), lanes), np.int64)
        self._words: tuple[int, NDArray[np.uint64]] | None = None  # of the key in use

    @property
    def dealt(self) -> Int64:
        """Positions dealt so far: [sources, lanes]."""
        return self._dealt.copy()

    def seek(self, position: int) -> None:
        """Moves to `position`.

        Draws a word for every position before it, which takes about 3 s for 10**8 of them.
        """
        self._position, self._dealt = 0, np.zeros_like(self._dealt)
        while self._position < position:
            step = DRAWS_PER_KEY - self._position % DRAWS_PER_KEY
            places = self._places(min(step, position - self._position))
            self._dealt += np.bincount(places, minlength=self._dealt.size).reshape(
                self._dealt.shape
            )

    def assign(self, count: int) -> tuple[Int64, Int64]:
        """Deals the next `count` positions: source and number in its stream, each int64[count]."""
        chunks: list[Int64] = []
        while count > 0:
            step = min(count, DRAWS_PER_KEY - self._position % DRAWS_PER_KEY)
            chunks.append(self._places(step))
            count -= step
        places = np.concatenate(chunks)  # [count], source * lanes + lane
        numbers = np.empty_like(places)
        dealt = self._dealt.reshape(-1)
        for place in np.unique(places).tolist():
            mine = np.flatnonzero(places == place)
            numbers[mine] = dealt[place] + np.arange(len(mine))
            dealt[place] += len(mine)
        return places // self._lanes, numbers

    def _places(self, count: int) -> Int64:
        """Source * lanes + lane of the next `count` positions, within one key's draws."""
        positions = self._position + np.arange(count)
        if self._kinds is None:
            chosen = self._source_at(self._draws(self._position, count))
        else:
            chosen = self._even_sources(positions, self._kinds)
        rows = positions % self._batch_size
        self._position += count
        return chosen * self._lanes + rows * self._lanes // self._batch_size

    def _source_at(self, places: Float64) -> Int64:
        """Sources at places in [0, 1) of the circle."""
        numbers = np.searchsorted(self._edges, places, side="right")
        return self._order[np.minimum(numbers, len(self._edges) - 1)]

    def _draws(self, first: int, count: int) -> Float64:
        """Numbers `first` and following of the endless independent draws in [0, 1)."""
        pieces = []
        while count > 0:
            key, place = divmod(first, DRAWS_PER_KEY)
            if self._words is None or self._words[0] != key:
                self._words = key, random_words(DRAWS_PER_KEY, self._seed, "mixture", key)
            pieces.append(_unit(self._words[1][place : place + count]))
            first, count = first + len(pieces[-1]), count - len(pieces[-1])
        return np.concatenate(pieces)

    def _even_sources(self, positions: Int64, kinds: Int64) -> Int64:
        """Sources of positions that follow each other, from those of their complete batches."""
        size, half = self._batch_size, self._batch_size // 2
        first, last = int(positions[0]) // size, int(positions[-1]) // size + 1
        # of each batch: where the spaced places, the deal of pairs and their turns begin
        drawn = self._draws(3 * first, 3 * (last - first)).reshape(-1, 3)
        start, deal, turn = drawn[:, :1], drawn[:, 1:2], drawn[:, 2:]
        sources = self._source_at((np.arange(size) + start) / size)  # [batches, size]
        pairs = np.stack([sources[:, :half], sources[:, ::-1][:, :half]], axis=-1)
        by_sum = np.argsort(kinds[pairs].sum(axis=-1), axis=1, kind="stable")  # [batches, half]
        # places of half a batch in the order in which golden steps visit a circle
        steps = np.argsort(np.argsort(np.arange(half) * _GOLDEN % 1.0))
        chosen = (steps + (deal * half).astype(np.int64)) % half
        pairs = np.take_along_axis(pairs, np.take_along_axis(by_sum, chosen, 1)[:, :, None], 1)
        # every other pair is turned around, spread as evenly
        turned = (turn + np.arange(half) * _SILVER) % 1.0 < 0.5
        rows = np.where(turned[:, :, None], pairs[:, :, ::-1], pairs)  # [batches, half, 2]
        return rows.reshape(-1)[positions - first * size]
