"""Programs that are compiled before they are called."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

from xvla_jax.compilation.ahead import Ahead
from xvla_jax.models.kernels import COMPILER_OPTIONS

_SHAPE = jax.ShapeDtypeStruct((3,), jnp.float32)


def _lower() -> jax.stages.Lowered:
    return jax.jit(lambda x: 2 * x).lower(_SHAPE)


def test_a_program_is_compiled_once_and_runs() -> None:
    lowered, ready = [], threading.Event()
    lines: list[str] = []

    def lower() -> jax.stages.Lowered:
        lowered.append(threading.current_thread().name)
        return _lower()

    def note(program: jax.stages.Compiled, line: str) -> None:
        lines.append(line)
        ready.set()

    program = Ahead(lower, ready=note)
    assert ready.wait(60)
    assert [float(x) for x in program(jnp.arange(3.0))] == [0, 2, 4]
    assert lowered == ["compile_0"], "once, in the thread"
    assert lines[0].startswith("ready after ")
    with pytest.raises(TypeError):
        program(jnp.arange(4.0))


def test_a_caller_does_not_wait_for_programs_in_front_of_its_own() -> None:
    go, started = threading.Event(), threading.Event()

    def slow() -> jax.stages.Lowered:
        started.set()
        assert go.wait(60)
        return _lower()

    first, second = Ahead(slow), Ahead(_lower)
    assert started.wait(60)
    assert float(second(jnp.ones(3))[0]) == 2
    go.set()
    assert float(first(jnp.ones(3))[0]) == 2


def test_a_jitted_function_takes_its_program_and_other_arguments_too() -> None:
    compiled: list[str] = []
    monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **kwargs: compiled.append(event)
    )

    def compilations() -> int:
        return sum("backend_compile" in event for event in compiled)

    double = jax.jit(lambda x: 2 * x, compiler_options=COMPILER_OPTIONS)
    program = Ahead(lambda: double.lower(_SHAPE), function=double)
    x, y = (jax.device_put(np.ones(n, np.float32)) for n in (3, 4))
    program.compile()
    before = compilations()
    assert np.asarray(program(x))[0] == 2  # indexed by numpy, which compiles nothing
    assert compilations() == before, "JAX finds what was compiled ahead"
    assert np.asarray(program(y))[0] == 2
    assert compilations() == before + 1


def test_an_error_reaches_the_caller() -> None:
    def fail() -> Any:
        raise ValueError("no such shape")

    with pytest.raises(ValueError, match="no such shape"):
        Ahead(fail)(jnp.ones(3))


def test_a_process_ends_without_the_programs_that_wait() -> None:
    """The first sleeps in the thread while the process ends; none of the others begins."""
    child = (
        "import time\n"
        "from xvla_jax.compilation.ahead import Ahead\n"
        "def lower():\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(1)\n"
        "    raise ValueError\n"
        "programs = [Ahead(lower) for _ in range(5)]\n"
        "time.sleep(0.3)\n"
    )
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["begun"]
