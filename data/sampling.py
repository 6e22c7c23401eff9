"""Counter-based randomness: every choice is a function of the seed and of what is chosen.

Built on raw 64-bit words of numpy's Philox, whose values numpy guarantees across releases (those of
`Generator.permutation` and friends it does not), so a stream survives an upgrade.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
DRAWS_PER_KEY = 2**16


def random_words(count: int, seed: int, *purpose: str | int) -> NDArray[np.uint64]:
    """`count` random 64-bit words that depend on `seed` and `purpose` alone."""
    digest = hashlib.blake2b(repr((seed, *purpose)).encode(), digest_size=16).digest()
    key = int.from_bytes(digest, "little")
    return np.random.Philox(key=key).random_raw(count).astype(np.uint64)


def permutation(count: int, seed: int, *purpose: str | int) -> Int64:
    """A random order of 0 .. count - 1 that depends on the arguments alone."""
    return np.argsort(random_words(count, seed, *purpose), kind="stable")


def uniforms(count: int, seed: int, *purpose: str | int) -> Float64:
    """`count` random numbers in [0, 1) that depend on `seed` and `purpose` alone."""
    return _unit(random_words(count, seed, *purpose))


def _unit(words: NDArray[np.uint64]) -> Float64:
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Mixer:
    """Deals the positions of the global sample stream to weighted sources.

    Position p goes to a source drawn by weight. The k-th position dealt to a source takes that
    source's sample number k, so `assign` gives for each position the source and this number.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self._edges = np.cumsum(np.asarray(weights, np.float64)) / np.sum(weights)
        self._seed = seed
        self._position = 0
        self._dealt = np.zeros(len(weights), np.int64)

    def seek(self, position: int) -> Int64:
        """Go on from `position`; returns how many positions each source had before it, [sources].

        Draws a word for every position before it, which takes about 2 s for 10**8 of them.
        """
        self._position, self._dealt = 0, np.zeros_like(self._dealt)
        while self._position < position:
            step = DRAWS_PER_KEY - self._position % DRAWS_PER_KEY
            chosen = self._draw(min(step, position - self._position))
            self._dealt += np.bincount(chosen, minlength=len(self._dealt))
        return self._dealt.copy()

    def assign(self, count: int) -> tuple[Int64, Int64]:
        """Source and sample number of the next `count` positions, each int64[count]."""
        chunks: list[Int64] = []
        while count > 0:
            step = min(count, DRAWS_PER_KEY - self._position % DRAWS_PER_KEY)
            chunks.append(self._draw(step))
            count -= step
        chosen = np.concatenate(chunks)
        numbers = np.empty_like(chosen)
        for source in range(len(self._dealt)):
            mine = np.flatnonzero(chosen == source)
            numbers[mine] = self._dealt[source] + np.arange(len(mine))
            self._dealt[source] += len(mine)
        return chosen, numbers

    def _draw(self, count: int) -> Int64:
        """Sources of the next `count` positions, which lie within one key's draws."""
        key, first = divmod(self._position, DRAWS_PER_KEY)
        self._position += count
        words = random_words(DRAWS_PER_KEY, self._seed, "mixture", key)[first : first + count]
        chosen = np.searchsorted(self._edges, _unit(words), side="right")
        return np.minimum(chosen, len(self._edges) - 1).astype(np.int64)
