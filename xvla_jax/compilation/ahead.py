"""Programs that are compiled in a thread, beside the reading of what they will run on.

One thread compiles them in the order in which they were made: two compilers at a time would share
cores and memory. A caller whose program has not begun compiles it itself, so that nothing hangs on
the thread: at the end of the process it takes up no further program.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from xvla_jax.compilation.program_cache import counts


class Ahead:
    """A program that is compiled from shapes; a call waits for it and runs it.

    Calls must have the shapes, dtypes and placements that the program was lowered for, unless a
    ``function`` is called.

    Args:
        lower: lowers the program; runs in the thread, or where the program is called.
        ready: called in the thread with the compiled program and a line on what it took.
        begin: compile it now; otherwise when it is called.
        function: jitted, the one that ``lower`` lowers; it is called in place of the program, which
            JAX finds in it, and takes arguments of another form too.
    """

    def __init__(
        self,
        lower: Callable[[], jax.stages.Lowered],
        *,
        ready: Callable[[jax.stages.Compiled, str], None] | None = None,
        begin: bool = True,
        function: Callable[..., Any] | None = None,
    ) -> None:
        self._lower, self._ready, self._function = lower, ready, function
        self._compiled: jax.stages.Compiled | None = None
        self._one = threading.Lock()
        if begin:
            _tasks().add(self.compile)

    def compile(self) -> jax.stages.Compiled:
        """Compiles the program once; an error is raised again at each call."""
        with self._one:
            if self._compiled is None:
                began = time.monotonic()
                self._compiled = self._lower().compile()
                if self._ready is not None:
                    line = _line(time.monotonic() - began)
                    # Apart, so that nobody waits for what is done with it.
                    _tasks().add(functools.partial(self._ready, self._compiled, line))
        return self._compiled

    def __call__(self, *arguments: Any) -> Any:
        """Runs the program.

        Raises:
            TypeError, ValueError: the arguments have another form than the program.
        """
        program = self.compile()
        return (self._function or program)(*arguments)


def compiling() -> bool:
    """Returns True while the thread has a task, which the end of the process would wait for."""
    return _tasks().busy


def _line(seconds: float) -> str:
    kept, made = counts()
    return (
        f"ready after {seconds:.1f} s (programs of this process so far: {kept} from the cache, "
        f"{made} compiled)"
    )


class _Tasks:
    """Tasks that one thread does in order.

    The thread's pool is given one at a time, because the interpreter waits at its end for all that
    a pool was given.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._waiting: collections.deque[Callable[[], object]] = collections.deque()
        self._lock = threading.Lock()
        self._idle = True

    @property
    def busy(self) -> bool:
        """True from the first task until the last one is done."""
        return not self._idle

    def add(self, task: Callable[[], object]) -> None:
        """Adds a task; its errors are dropped, for the program's caller meets them too."""
        with self._lock:
            self._waiting.append(task)
            start, self._idle = self._idle, False
        if start:
            self._submit()

    def _submit(self) -> None:
        with contextlib.suppress(RuntimeError):  # the interpreter ends
            self._pool.submit(self._do_next)

    def _do_next(self) -> None:
        with self._lock:
            self._idle = not self._waiting
            if self._idle:
                return
            task = self._waiting.popleft()
        try:
            task()
        finally:
            self._submit()


_tasks = functools.cache(_Tasks)
