"""The loop of one robot in real time: a policy in the background, an action in every step."""

from __future__ import annotations

import logging
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from eval.client.remote import PolicyUnavailableError

from .guard import ActionGuard, StaleObservationError
from .realtime import ChunkStream


class HoldExpiredError(RuntimeError):
    """The robot has held its pose for as long as it may; bring it to a stop that is safe."""


class HoldPose:
    """What to command while there is no action: the last commanded row, gripper and all.

    Never zeros: on an absolute controller they are a motion to the origin.

    Args:
        longest_steps: control steps in a row that may be held.
    """

    def __init__(self, *, longest_steps: int) -> None:
        if longest_steps < 1:
            raise ValueError(f"longest_steps is {longest_steps}; at least 1")
        self._longest = longest_steps
        self._row: NDArray[np.float32] | None = None
        self.held = 0

    def commanded(self, row: ArrayLike) -> None:
        """Notes a row [D] that goes to the robot; before the first action, its present pose."""
        self._row = np.array(row, np.float32)
        self.held = 0

    def hold(self) -> NDArray[np.float32]:
        """The row [D] to command again.

        Raises:
            HoldExpiredError: nothing was commanded yet, or it was held too long.
        """
        if self._row is None:
            raise HoldExpiredError("no pose was commanded yet; tell the robot's present one first")
        if self.held >= self._longest:
            raise HoldExpiredError(f"the pose was held for {self.held} control steps, the most")
        self.held += 1
        return self._row.copy()


_LOG = logging.getLogger(__name__)

Observe = Callable[[], Mapping[str, Any]]
Row = NDArray[np.float32]


class RobotController:
    """Asks a policy and hands out one row in each control step; never blocks on the policy.

    While there is nothing to carry out (the first answer is not there, the policy is away, what was
    seen is too old) the last commanded pose is held, for a bounded time.

    Args:
        policy: anything with `act` of door 2; it is called in one thread of our own.
        stream: how chunks follow one another.
        guard: of the robot.
        hold: of the robot.
        seed_of: seed of the noise by number of the query.
        clock: seconds; tests put a fake here.
    """

    def __init__(
        self,
        policy: Any,
        stream: ChunkStream,
        guard: ActionGuard,
        hold: HoldPose,
        *,
        seed_of: Callable[[int], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._stream = stream
        self._guard = guard
        self._hold = hold
        self._seed_of = seed_of
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._query: Future[Row] | None = None
        self._queries = 0
        self._answers = 0
        self._seen = self._asked = clock()  # when what runs, and what was asked for, was seen
        self._paced: deque[Row] = deque()

    def __enter__(self) -> RobotController:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def reset(self, *, proprio: ArrayLike, pose: ArrayLike) -> None:
        """Begins an episode, at half speed; nothing may be on its way.

        Args:
            proprio: [D] of the first query.
            pose: the robot's present pose as an action row [D], which is held until there is one.
        """
        if self._query is not None:
            raise RuntimeError("a query is on its way; close this controller and make another")
        self._stream.reset(proprio)
        self._guard.reset(pose)
        self._hold.commanded(pose)
        self._paced.clear()
        self._answers = 0

    def step(self, observe: Observe) -> Row:
        """The row [D] of this control step.

        Args:
            observe: makes an observation of door 2; called only where the policy is asked.

        Raises:
            HoldExpiredError: there was nothing to carry out for too long.
            RemoteError: the policy refused, or is another one; bring the robot to a stop.
        """
        self._collect()
        if not self._paced and self._stream.wants_query:  # not halfway to an action
            self._ask(observe)
        try:
            return self._next()
        except StaleObservationError as error:
            _LOG.warning("%s; holding", error)
            self._stream.drop()
            self._paced.clear()
            return self._held()

    def close(self) -> None:
        """Lets the thread go; an answer on its way is forgotten."""
        self._thread.shutdown(wait=False)

    def _ask(self, observe: Observe) -> None:
        self._asked = self._clock()
        observation = self._stream.query(observe())
        seed = [self._seed_of(self._queries)]
        self._queries += 1
        self._query = self._thread.submit(lambda: self._policy.act([observation], seed=seed)[0])

    def _collect(self) -> None:
        if self._query is None or not self._query.done():
            return
        query, self._query = self._query, None
        try:
            self._stream.answer(query.result())
        except PolicyUnavailableError as error:
            _LOG.warning("%s; going on with what there is", error)
            self._stream.abandon()
            self._guard.unsettle()
            self._answers = 0
            return
        self._seen = self._asked
        self._answers += 1
        if self._answers > 1:
            self._guard.settle()

    def _held(self) -> Row:
        row = self._hold.hold()
        self._guard.held()
        return row

    def _next(self) -> Row:
        if not self._paced:
            row = self._stream.take()
            if row is None:
                return self._held()
            self._paced.extend(self._guard.paced(row))
        row = self._guard.check(self._paced.popleft(), observed=self._seen, now=self._clock())
        self._hold.commanded(row)
        self._stream.carried_out(row)
        return row
