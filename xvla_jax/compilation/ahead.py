"""A program that is compiled in a thread, beside the reading of what it will run on."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from xvla_jax.compilation.program_cache import counts


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """One thread for all programs: two compilers at a time would share the cores and the memory."""
    return ThreadPoolExecutor(1, thread_name_prefix="compile")


class Ahead:
    """Compiles a program from shapes as soon as it is made; a call waits for it and runs it.

    Calls must have the shapes, dtypes and placements that the program was lowered for.

    Args:
        lower: lowers the program; it runs in the thread.
        ready: called there with a line on what it took, once the program is compiled.
    """

    def __init__(
        self,
        lower: Callable[[], jax.stages.Lowered],
        *,
        ready: Callable[[str], None] = lambda line: None,  # noqa: ARG005
    ) -> None:
        began = time.monotonic()

        def compile_now() -> jax.stages.Compiled:
            compiled = lower().compile()
            kept, made = counts()
            ready(
                f"compiled in {time.monotonic() - began:.1f} s "
                f"(programs so far: {kept} from the cache, {made} compiled)"
            )
            return compiled

        self._compiled = _threads().submit(compile_now)

    def __call__(self, *arguments: Any) -> Any:
        """Runs the program.

        Raises:
            TypeError, ValueError: the arguments have another form than the program.
        """
        return self._compiled.result()(*arguments)
