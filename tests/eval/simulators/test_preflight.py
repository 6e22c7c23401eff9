"""On unsuitable machines the error says what to change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from eval.simulators import preflight


@pytest.mark.parametrize("version", ["3.4.0", "3.8.1", "3.9.9", "4.0.0", "5.1"])
def test_known_bad_mujoco(version: str) -> None:
    with pytest.raises(preflight.SimulatorSetupError, match=r"mujoco==3\.17\.0"):
        preflight.check_mujoco(version)


@pytest.mark.parametrize("version", ["2.3.7", "3.3.7", "3.10.0", "3.17.0"])
def test_known_good_mujoco(version: str) -> None:
    preflight.check_mujoco(version)


def test_modules_that_crash_are_refused() -> None:
    preflight.refuse_modules(("tensorflow_that_nobody_has",))
    with pytest.raises(preflight.SimulatorSetupError, match="pytest is imported"):
        preflight.refuse_modules(("pytest",))


def test_a_missing_distribution_says_how_to_get_it() -> None:
    with pytest.raises(preflight.SimulatorSetupError, match=r"\.\[sim\]"):
        preflight.installed("no-such-simulator")


def test_backends_that_need_a_display_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    with pytest.raises(preflight.SimulatorSetupError, match="egl or osmesa"):
        preflight.require_headless_gl()


# a process of its own: MuJoCo's software rendering crashes beside TensorFlow
_CONTEXT = """
import mujoco
from eval.simulators import preflight
before = preflight.current_gl_renderer()
named = preflight.require_headless_gl()
context = mujoco.GLContext(16, 16)
context.make_current()
print(before, preflight.current_gl_renderer() == named, sep="|")
"""


def test_the_renderer_is_that_of_the_current_context() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CONTEXT], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "no OpenGL device|True"


def test_the_commit_of_a_checkout_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    for folder in ("envs", "site-packages/VLABench"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").touch()
    git("init", "-q")
    git("add", "envs")
    git("commit", "-qm", "one")
    for name, folder in (("envs", "envs"), ("VLABench", "site-packages/VLABench")):
        module = ModuleType(name)
        module.__file__ = str(tmp_path / folder / "__init__.py")
        monkeypatch.setitem(sys.modules, name, module)
    commit = git("rev-parse", "HEAD")[:12]
    assert preflight.commits() == {"RoboTwin commit": commit}
    (tmp_path / "envs" / "__init__.py").write_text("changed = True\n")
    assert preflight.commits() == {"RoboTwin commit": f"{commit} (changed)"}
    monkeypatch.setenv("PATH", "")
    assert preflight.commits() == {}


def test_without_a_vulkan_device_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    with pytest.raises(
        preflight.SimulatorSetupError, match=r"libvulkan.*Mesa 26\.1.*simpler/README\.md"
    ):
        preflight.vulkan_devices()


def test_vulkan_devices_are_named_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def enumerate_devices(_: Any, count: Any, devices: Any) -> None:
        count._obj.value = 3
        if devices is not None:
            devices[:] = (1, 2, 3)

    def get_properties(device: Any, properties: Any) -> None:
        name = b"llvmpipe" if device.value == 2 else b"NVIDIA H200"
        properties[:] = (bytes(20) + name).ljust(len(properties), b"\0")

    loader = SimpleNamespace(
        vkCreateInstance=lambda *_: 0,
        vkEnumeratePhysicalDevices=enumerate_devices,
        vkGetPhysicalDeviceProperties=get_properties,
        vkDestroyInstance=lambda *_: None,
    )
    monkeypatch.setattr("ctypes.CDLL", lambda _: loader)
    assert preflight.vulkan_devices() == "NVIDIA H200, llvmpipe"
