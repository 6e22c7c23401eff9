"""What waits, served in turns: address by address, and within an address client by client."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Final, Generic, TypeVar

from xvla_jax.serving.clients import CROWD, Client

T = TypeVar("T")
_MOST_TURNS: Final = 16  # of one address; whoever comes then shares the turn of the crowd

Rows = collections.OrderedDict[str, collections.deque[T]]


class FairQueue(Generic[T]):
    """First in, first out for each client; round robin among addresses, and inside of each.

    An address has one turn however many names its clients give themselves.

    Args:
        client_of: whose an item is.
    """

    def __init__(self, client_of: Callable[[T], Client]) -> None:
        self._client_of = client_of
        self._waiting: collections.OrderedDict[str, Rows[T]] = collections.OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, item: T) -> None:
        """Adds an item behind those of its client."""
        client = self._client_of(item)
        rows = self._waiting.setdefault(client.address, collections.OrderedDict())
        rows.setdefault(_row_of(client, rows), collections.deque()).append(item)
        self._size += 1

    def pop(self) -> T:
        """The next item of the client whose turn it is; client and address go to the end."""
        address, rows = next(iter(self._waiting.items()))
        name, items = next(iter(rows.items()))
        item = items.popleft()
        rows.move_to_end(name)
        self._waiting.move_to_end(address)
        self._taken(address, name)
        return item

    def remove(self, item: T) -> bool:
        """Takes an item out wherever it stands; False if it is not there."""
        address = self._client_of(item).address
        for name, items in self._waiting.get(address, {}).items():
            if item in items:
                items.remove(item)
                self._taken(address, name)
                return True
        return False

    def ahead(self, client: Client) -> int:
        """How many items would come before a new one of this client."""
        rows = self._waiting.get(client.address, collections.OrderedDict())
        row = _row_of(client, rows)
        own = len(rows.get(row, ()))
        before = own + sum(min(len(items), own + 1) for n, items in rows.items() if n != row)
        others = (_size(r) for address, r in self._waiting.items() if address != client.address)
        return before + sum(min(size, before + 1) for size in others)

    def victim(self, client: Client) -> T | None:
        """The item that gives way to one of this client where there is no room, if one does.

        It is the newest of the longest row: of the address that has most, or else of the client's
        own; None where the client itself would have no less.
        """
        own = self._waiting.get(client.address, collections.OrderedDict())
        longest = max(self._waiting.values(), key=_size, default=own)
        if _size(own) + 1 < _size(longest):
            return max(longest.values(), key=len)[-1]
        row = max(own.values(), key=len, default=None)
        if row and len(own.get(_row_of(client, own), ())) + 1 < len(row):
            return row[-1]
        return None

    def _taken(self, address: str, name: str) -> None:
        self._size -= 1
        rows = self._waiting[address]
        if not rows[name]:
            del rows[name]
        if not rows:
            del self._waiting[address]


class Turns:
    """A lock that so many may hold; the others wait as in a `FairQueue`.

    Args:
        slots: how many.
    """

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._queue: FairQueue[_Waiter] = FairQueue(lambda waiter: waiter.client)

    @contextlib.asynccontextmanager
    async def turn(self, client: Client) -> AsyncIterator[None]:
        """Holds one of them inside."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(_Waiter(client))
        try:
            yield
        finally:
            self._release()

    async def _wait(self, waiter: _Waiter) -> None:
        self._queue.push(waiter)
        try:
            await waiter.future
        except asyncio.CancelledError:
            if not self._queue.remove(waiter):  # its turn had come already
                self._release()
            raise

    def _release(self) -> None:
        if len(self._queue):
            self._queue.pop().future.set_result(None)
        else:
            self._free += 1


@dataclasses.dataclass(eq=False)
class _Waiter:
    client: Client
    future: asyncio.Future[None] = dataclasses.field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


def _row_of(client: Client, rows: Rows[T]) -> str:
    full = len(rows) >= _MOST_TURNS and client.name not in rows
    return CROWD if full else client.name


def _size(rows: Rows[T]) -> int:
    return sum(map(len, rows.values()))
