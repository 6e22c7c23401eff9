"""Whose turn a request counts as: an address, and what the client calls itself there.

A name costs nothing, so it earns a turn of its own only once it has been seen before. Requests
under names that nobody has seen share one turn: a client that calls itself differently each time
gains nothing by it.
"""

from __future__ import annotations

import collections
from typing import Final, NamedTuple

CLIENT_ID: Final = "x-client-id"  # the header with a client's name
CROWD: Final = "*"  # whom names without a turn of their own count as; no client can be called so
_MOST_NAME: Final = 64  # characters
_MOST_SEEN: Final = 16_384  # names that are remembered, of all addresses


class Client(NamedTuple):
    """Whose turn it is; a name is empty for clients that give none."""

    address: str
    name: str = ""


class Clients:
    """The names that were seen lately, those used last the longest."""

    def __init__(self) -> None:
        self._seen: collections.OrderedDict[Client, None] = collections.OrderedDict()

    def client(self, address: str, name: str) -> Client:
        """The client of one more request.

        Args:
            address: where it comes from.
            name: what it calls itself, or what tells its connection from others; of one too long
                the beginning counts.
        """
        if not name:
            return Client(address)
        found = Client(address, f"={name[:_MOST_NAME]}")
        known = found in self._seen
        self._seen[found] = None
        self._seen.move_to_end(found)
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)
        return found if known else Client(address, CROWD)
