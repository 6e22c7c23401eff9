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
_GOLDEN = (5**0.5 - 1) / 2  # the step around a circle that leaves the most even gaps


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
    has the share of each source up to about a sample, and so of the sources of each `kind`
    together. Rows of a batch are steps of the golden ratio around a circle of the sources, ordered
    by kind, from a place that is drawn for each batch; each row alone is as with independent draws.
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
        self._even = kinds is not None
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
        drawn = self._even_draws(positions) if self._even else self._draws(self._position, count)
        places = np.searchsorted(self._edges, drawn, side="right")
        chosen = self._order[np.minimum(places, len(self._edges) - 1)]
        rows = positions % self._batch_size
        self._position += count
        return chosen * self._lanes + rows * self._lanes // self._batch_size

    def _draws(self, first: int, count: int) -> Float64:
        """`count` of the endless independent draws in [0, 1), within one key."""
        key, place = divmod(first, DRAWS_PER_KEY)
        if self._words is None or self._words[0] != key:
            self._words = key, random_words(DRAWS_PER_KEY, self._seed, "mixture", key)
        return _unit(self._words[1][place : place + count])

    def _even_draws(self, positions: Int64) -> Float64:
        """Draws in [0, 1) for positions that follow each other, at most a key's."""
        batches, rows = np.divmod(positions, self._batch_size)
        first, last = int(batches[0]), int(batches[-1]) + 1
        # a start for each batch; two pieces where its number passes into the next key
        cut = min(last, (first // DRAWS_PER_KEY + 1) * DRAWS_PER_KEY)
        pieces = [self._draws(first, cut - first)]
        if last > cut:
            pieces.append(self._draws(cut, last - cut))
        return (np.concatenate(pieces)[batches - first] + rows * _GOLDEN) % 1.0
