"""The rules of tests/architecture.py hold in this tree, and each rule can be seen to fail."""

import ast
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import architecture
from tests.architecture import Module, load_modules

ROOT = Path(__file__).resolve().parents[1]
MODULES = load_modules(ROOT)
TEXT_FILES = ("*.py", "*.md", "*.toml", "*.yaml", "*.yml", "*.sh", "Makefile", "NOTICE", "run")
TEXT_FOLDERS = (*architecture.PACKAGES, ".ci", ".github", "requirements")

EVERYWHERE = [
    architecture.forbidden_imports,
    architecture.heavy_eval_imports,
    architecture.stray_dlimp,
    architecture.private_jax,
    architecture.size_problems,
    architecture.name_problems,
    architecture.broad_excepts,
]


@pytest.mark.parametrize("rule", EVERYWHERE, ids=lambda rule: rule.__name__)
def test_tree_keeps_the_rule(rule: Callable[[Module], list[str]]) -> None:
    assert [problem for module in MODULES.values() for problem in rule(module)] == []


def test_every_package_is_looked_at() -> None:
    assert {module.package for module in MODULES.values()} == set(architecture.PACKAGES)


def test_no_import_cycles() -> None:
    assert architecture.import_cycle(MODULES) == []


@pytest.mark.parametrize(
    "rule",
    [architecture.upward_imports, architecture.crowded_rooms, architecture.lonely_modules],
    ids=lambda rule: rule.__name__,
)
def test_rooms_keep_the_rule(rule: Callable[[dict[str, Module]], list[str]]) -> None:
    assert rule(MODULES) == []


def test_every_room_has_a_line_and_says_what_it_is_for() -> None:
    for peer, lines in architecture.ROOMS.items():
        rooms = {name for name in MODULES if name.startswith(f"{peer}.") and name.count(".") == 1}
        stated = {f"{peer}.{room}" for line in lines for room in line if room}
        assert stated <= rooms, "a line of ROOMS that stands for nothing"
    for name, module in MODULES.items():
        if module.is_package and module.package in ("xvla_jax", "data", "eval", "scripts"):
            assert len((ast.get_docstring(module.tree) or "").split()) >= 8, name


def test_eval_is_written_for_python38() -> None:
    modules = [module for module in MODULES.values() if module.package == "eval"]
    assert [
        problem for module in modules for problem in architecture.python38_problems(module)
    ] == []


def test_eval_adapters_exist() -> None:
    assert set(architecture.EVAL_ADAPTERS) <= set(MODULES)


def test_text_is_finished_and_of_no_machine() -> None:
    files = [path for pattern in TEXT_FILES for path in ROOT.glob(pattern)]
    files += [
        path
        for folder in TEXT_FOLDERS
        for pattern in TEXT_FILES
        for path in (ROOT / folder).rglob(pattern)
        if "fixtures" not in path.parts
    ]
    problems = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        problems += architecture.text_problems(str(path.relative_to(ROOT)), text)
    assert problems == []


def loaded_by(statements: str) -> set[str]:
    """Top-level modules in memory after a fresh interpreter ran `statements`."""
    code = f"{statements}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_importing_the_library_loads_no_tensorflow_and_no_peer() -> None:
    loaded = loaded_by("from xvla_jax import XVLA, Policy, flow, load_pretrained, save_pretrained")
    assert "jax" in loaded
    assert (
        loaded & (architecture.TENSORFLOW | architecture.SIMULATORS | {"torch", "data", "eval"})
        == set()
    )


def test_importing_the_policy_loads_no_kernels() -> None:
    """Pallas takes a tenth of the time of the import, and only a training on TPUs needs it."""
    is_loaded = "any('experimental.pallas' in name for name in sys.modules)"
    code = f"import sys, xvla_jax.policy; sys.exit({is_loaded})"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_importing_eval_loads_numpy_only() -> None:
    names = [
        name
        for name, module in MODULES.items()
        if module.package == "eval"
        and name not in architecture.EVAL_ADAPTERS
        and name != "eval.__main__"
    ]
    loaded = loaded_by("\n".join(f"import {name}" for name in names))
    heavy = (
        architecture.JAX
        | architecture.TENSORFLOW
        | architecture.SIMULATORS
        | {"torch", "imageio", "matplotlib"}
    )
    assert loaded & heavy == set()


# Each rule against the smallest source that breaks it, and one beside it that does not.
BREAKS = [
    (architecture.forbidden_imports, "xvla_jax.a", "import tensorflow as tf", "import jax"),
    (
        architecture.forbidden_imports,
        "xvla_jax.a",
        "def f():\n    from data.readers.rlds import x",
        "import database",
    ),
    (architecture.forbidden_imports, "data.a", "import jax.numpy as jnp", "import tensorflow"),
    (architecture.forbidden_imports, "eval.a", "from xvla_jax import flow", "from . import tasks"),
    (architecture.heavy_eval_imports, "eval.a", "import imageio", "def f():\n    import imageio"),
    (
        architecture.heavy_eval_imports,
        "eval.a",
        "try:\n    import rich\nfinally:\n    pass",
        "import numpy",
    ),
    (
        architecture.heavy_eval_imports,
        "eval.a",
        "import mujoco",
        "if TYPE_CHECKING:\n    import mujoco",
    ),
    (architecture.stray_dlimp, "data.a", "from dlimp import DLataset", "from data import rlds"),
    (architecture.stray_dlimp, "data.a", "import_module('dlimp')", "find_spec('dlimp')"),
    (architecture.private_jax, "data.a", "from jax._src import core", "import jax.core"),
    (architecture.private_jax, "data.a", "import jax\njax.lib._xla.f()", "jax.__version__"),
    (architecture.private_jax, "data.a", "f('jaxlib._jax')", "f('jaxlib')"),
    (architecture.python38_problems, "eval.a", "match 1:\n    case 1: pass", "x = 1"),
    (architecture.python38_problems, "eval.a", "Row = list[int]", "Row = rows[int]"),
    (architecture.python38_problems, "eval.a", "zip(a, b, strict=True)", "zip(a, b)"),
    (architecture.python38_problems, "eval.a", "name.removeprefix('a')", "name.strip('a')"),
    (
        architecture.python38_problems,
        "eval.a",
        "def f(x: int | None): pass",
        "from __future__ import annotations\ndef f(x: list[int] | None): pass",
    ),
    (architecture.size_problems, "data.a", "x = 1\n" * 451, "x = 1\n" * 450),
    (
        architecture.size_problems,
        "data.a",
        "def f():\n" + "    x = 1\n" * 60,
        "def f():\n" + "    x = 1\n" * 59,
    ),
    (architecture.name_problems, "data.utils", "", None),
    (
        architecture.broad_excepts,
        "data.a",
        "try: f()\nexcept Exception: pass",
        "try: f()\nexcept OSError: pass",
    ),
    (
        architecture.broad_excepts,
        "data.faults",
        "def other():\n    try: f()\n    except Exception: pass",
        "def attempt():\n    try: f()\n    except Exception: pass",
    ),
    (architecture.broad_excepts, "data.a", "try: f()\nexcept: pass", "try: f()\nfinally: pass"),
    (architecture.broad_excepts, "data.a", "try: f()\nexcept (OSError, Exception): pass", None),
]


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="parses as 3.8 there; 3.11 refuses it")
def test_a_parenthesised_with_is_no_python38() -> None:
    module = Module("eval.a", "with (open(a) as b, open(c) as d): pass")
    assert len(architecture.python38_problems(module)) == 1
    assert architecture.python38_problems(Module("eval.a", "with a as b: pass")) == []


@pytest.mark.parametrize(("rule", "name", "bad", "good"), BREAKS)
def test_rule_can_fail(
    rule: Callable[[Module], list[str]], name: str, bad: str, good: str | None
) -> None:
    assert len(rule(Module(name, bad))) == 1
    if good is not None:
        assert rule(Module(name, good)) == []


def test_cycle_is_seen_through_relative_and_late_imports() -> None:
    sources = {
        "data.a": "from . import b",
        "data.b": "def f():\n    from data.c import thing",
        "data.c": "import data.a",
        "data.d": "import data.a",
    }
    modules = {name: Module(name, source) for name, source in sources.items()}
    cycle = architecture.import_cycle(modules)
    assert cycle[0] == cycle[-1]
    assert set(cycle) == {"data.a", "data.b", "data.c"}
    del modules["data.b"]
    assert architecture.import_cycle(modules) == []


def _modules(**sources: str) -> dict[str, Module]:
    """Modules by dotted name, with `__` for a dot."""
    return {
        (dotted := name.replace("__", ".")): Module(dotted, source)
        for name, source in sources.items()
    }


def test_a_room_that_imports_upwards_is_named() -> None:
    rows = {"data__rows__a": "", "data__sources": "from data.rows import a", "data__spec": ""}
    assert architecture.upward_imports(_modules(**rows)) == []
    upward = _modules(
        **rows, data__poses="import data.rows.a", data__stream__b="import data.sources"
    )
    assert len(architecture.upward_imports(upward)) == 2
    assert len(architecture.upward_imports(_modules(xvla_jax__attic="", data__a=""))) == 1


def test_a_crowded_room_is_named() -> None:
    modules = _modules(**{f"eval__runs__m{i}": "" for i in range(15)})
    assert architecture.crowded_rooms(modules) == []
    modules |= _modules(eval__runs__more="")
    assert len(architecture.crowded_rooms(modules)) == 1
    assert len(architecture.crowded_rooms(_modules(**{f"eval__m{i}": "" for i in range(11)}))) == 1


def test_a_module_that_belongs_to_its_importer_is_named() -> None:
    long, one, two = "x = 1\n" * 60, "from data.stream import a", "import data.stream.a"
    alone = _modules(data__stream__a="x = 1", data__stream__b=one + "\n" + long)
    (problem,) = architecture.lonely_modules(alone)
    assert problem.startswith("data.stream.a")
    for other in ({"data__stream__c": two + "\n" + long}, {"data__stream__a": long}):
        assert architecture.lonely_modules(alone | _modules(**other)) == []


@pytest.mark.parametrize(
    "line",
    [
        "# TO" + "DO later",
        "raise NotImplemented" + "Error",
        "cd /wo" + "rk/main",
        "https://py" + "pi.org/x",
    ],
)
def test_text_rules_can_fail(line: str) -> None:
    assert len(architecture.text_problems("file", line)) == 1
    assert (
        architecture.text_problems("file", "https://example.org/work/x and ./tmp/ and to do") == []
    )


def test_load_modules_names_packages_and_files(tmp_path: Path) -> None:
    (tmp_path / "data" / "readers").mkdir(parents=True)
    (tmp_path / "data" / "readers" / "__init__.py").write_text("from .rlds import x")
    (tmp_path / "data" / "readers" / "rlds.py").write_text("from ..spec import y")
    modules = load_modules(tmp_path, ("data",))
    targets = {name: module.imports()[0].target for name, module in modules.items()}
    assert targets == {"data.readers": "data.readers.rlds.x", "data.readers.rlds": "data.spec.y"}
