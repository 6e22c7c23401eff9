"""Which connections stay where there are more than the server keeps."""

from __future__ import annotations

import collections
import enum
from typing import Final, Protocol


class Connection(Protocol):
    """What can be let go."""

    def shed(self) -> None:
        """Ends at once."""
        ...


class Stage(enum.Enum):
    """What a connection has done; those of an earlier stage give way first."""

    SILENT = "no request has arrived on it"
    IDLE = "its requests are answered"
    BUSY = "a request is being answered"


_GIVE_WAY: Final = (Stage.SILENT, Stage.IDLE)


class Admission:
    """All connections of a server by stage, those longest in it first.

    Args:
        most: that are kept. One more makes the oldest silent one end, else the oldest idle one;
            where all are busy it stays, for the probes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._members: dict[Stage, collections.OrderedDict[Connection, None]] = {
            stage: collections.OrderedDict() for stage in Stage
        }

    @property
    def crowded(self) -> bool:
        """Whether every connection that is kept is busy."""
        return len(self._members[Stage.BUSY]) >= self._most

    def enter(self, connection: Connection) -> None:
        """Takes in a connection, if need be in the place of another."""
        if sum(map(len, self._members.values())) >= self._most:
            self._shed_one()
        self._members[Stage.SILENT][connection] = None

    def move(self, connection: Connection, stage: Stage) -> None:
        """Notes what a connection does now; one that has left stays out."""
        for members in self._members.values():
            if connection in members:
                del members[connection]
                self._members[stage][connection] = None
                return

    def leave(self, connection: Connection) -> None:
        """Forgets a connection that has ended, or was forgotten already."""
        for members in self._members.values():
            members.pop(connection, None)

    def stage(self, connection: Connection) -> Stage | None:
        """Where a connection is; None for one that has left."""
        return next((s for s, members in self._members.items() if connection in members), None)

    def _shed_one(self) -> None:
        for stage in _GIVE_WAY:
            if self._members[stage]:
                oldest, _ = self._members[stage].popitem(last=False)
                oldest.shed()
                return
