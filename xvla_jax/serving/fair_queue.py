"""Requests that wait, served client by client in turns."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """First in, first out for each client; among clients round robin.

    Args:
        client_of: whose an item is.
    """

    def __init__(self, client_of: Callable[[T], str]) -> None:
        self._client_of = client_of
        self._waiting: collections.OrderedDict[str, collections.deque[T]] = (
            collections.OrderedDict()
        )
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, item: T) -> None:
        """Adds an item behind those of its client."""
        self._waiting.setdefault(self._client_of(item), collections.deque()).append(item)
        self._size += 1

    def pop(self) -> T:
        """The next item of the client whose turn it is; that client goes to the end."""
        client, items = next(iter(self._waiting.items()))
        item = items.popleft()
        self._size -= 1
        if items:
            self._waiting.move_to_end(client)
        else:
            del self._waiting[client]
        return item

    def remove(self, item: T) -> bool:
        """Takes an item out wherever it stands; False if it is not there."""
        client = self._client_of(item)
        items = self._waiting.get(client)
        if items is None or item not in items:
            return False
        items.remove(item)
        self._size -= 1
        if not items:
            del self._waiting[client]
        return True

    def ahead(self, client: str) -> int:
        """How many items would come before a new one of this client."""
        own = len(self._waiting.get(client, ()))
        others = (len(items) for name, items in self._waiting.items() if name != client)
        return own + sum(min(size, own + 1) for size in others)

    def newest_of_longest(self) -> T:
        """The last item of the client that has most in the queue."""
        return max(self._waiting.values(), key=len)[-1]

    def share(self, client: str) -> int:
        """How many items a client has."""
        return len(self._waiting.get(client, ()))
