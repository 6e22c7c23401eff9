"""Rules of the house as functions: modules in, complaints out. CONTRIBUTING.md has the reasons."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGES = ("xvla_jax", "data", "eval", "scripts", "configs", "benchmarks", "tests")

JAX = frozenset({"jax", "jaxlib", "flax", "optax", "orbax", "chex"})
TENSORFLOW = frozenset({"tensorflow", "tensorflow_datasets", "dlimp"})
SIMULATORS = frozenset({"libero", "robosuite", "mujoco"})
TORCH = frozenset({"torch"})
PLUGS = frozenset({"scripts", "configs", "benchmarks", "tests"})

# What a module of each package may not import, at any depth of its code.
FORBIDDEN: Mapping[str, frozenset[str]] = {
    "xvla_jax": TENSORFLOW | TORCH | SIMULATORS | PLUGS | {"data", "eval"},
    "data": JAX | TORCH | SIMULATORS | PLUGS | {"xvla_jax", "eval"},
    "eval": JAX | TENSORFLOW | TORCH | PLUGS | {"xvla_jax", "data"},
    "configs": JAX
    | TENSORFLOW
    | TORCH
    | SIMULATORS
    | {"xvla_jax", "data", "eval", "scripts", "benchmarks", "tests"},
    "scripts": frozenset({"tests", "benchmarks"}),
    "benchmarks": frozenset({"tests"}),
}

# Importing any other module of eval/ must need numpy and nothing else.
EVAL_ADAPTERS: Mapping[str, frozenset[str]] = {"eval.simulators.libero": SIMULATORS}

DLIMP_HOME = "data.readers.rlds"
# Names that JAX keeps to itself may go with any release; one module asks for them, and says so.
PRIVATE_JAX_HOMES = (
    "xvla_jax.training.multihost",
    "tests.xvla_jax.training.test_multihost",
    "tests.xvla_jax.training.test_clusters",
)
PRIVATE_JAX = re.compile(r"jax(lib)?(\.\w+)*\._(?!_)[\w.]+")
# the function that counts whatever is raised while an episode is read
BROAD_DOOR = ("data.faults", "attempt")
JUNK_DRAWERS = frozenset({"utils", "util", "helpers", "common", "misc"})
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60

# Rooms of each peer in the order in which they may import: a module imports from its own line and
# from lines above. "" stands for the modules of the peer's own folder that have no line.
ROOMS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "xvla_jax": (
        ("errors",),
        ("untrusted", "buckets"),
        ("preprocessing",),
        ("config", "actions", "batch", "processor", "contract", "sharding"),
        ("compilation", "plans"),
        ("models",),
        ("flow", "inpainting"),
        ("checkpoints",),
        ("lora",),
        ("objectives",),
        ("pretrained", "training"),
        ("policy",),
        ("checkpoint_tools", "exported", "planning", "serving"),
    ),
    "data": (
        ("faults", "stalls", "parts"),
        ("poses", "pixels"),
        ("",),
        ("counting",),
        ("rows", "readers", "stream"),
        ("sources",),
        ("writing", "inspection", "inference"),
    ),
    "eval": (
        ("", "tasks", "disturbances"),
        ("client",),
        ("robot", "simulators"),
        ("recording", "runs"),
        ("pages",),
    ),
}
MAX_MODULES = 15  # of a folder; __init__ does not count
MAX_TOP_MODULES: Mapping[str, int] = {"eval": 10, "data": 13, "scripts": 30, "configs": 20}
# A module that one other imports, of its own room, has at least so many lines; a shorter one
# belongs into its importer. Tables of rows and programs that start alone may be short.
MIN_LINES_OF_ONE_IMPORTER = 60
ROOMS_OF_ROWS = frozenset({"data.rows", "eval.tasks"})

# Each has a letter in brackets, so that this file does not match itself.
UNFINISHED = re.compile(r"\b(TO[D]O|FI[X]ME|X[X]X)\b|raise NotImplemented[E]rror")
MACHINE_PATHS = re.compile(r"(?<![\w.~)}-])/(wor[k]|roo[t]|tm[p]|hom[e])/")
REGISTRY_HOSTS = re.compile(r"pyp[i]\.org|python[h]osted\.org|npm[j]s\.org|deb\.[d]ebian\.org")


@dataclass(frozen=True)
class Import:
    """One imported dotted name (`from a import b` gives `a.b`), with the line it stands in."""

    target: str
    line: int

    @property
    def top(self) -> str:
        return self.target.split(".")[0]


@dataclass(frozen=True)
class Module:
    """A source file under its dotted name; a package is named without `.__init__`."""

    name: str
    source: str
    is_package: bool = False

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def package(self) -> str:
        """The top-level folder that the module is in."""
        return self.name.split(".")[0]

    def imports(self, *, on_import_only: bool = False) -> list[Import]:
        """Imports of the module without those for type checkers.

        Args:
            on_import_only: leave out what is imported inside functions, when they run.
        """
        imports: list[Import] = []
        for node in _walk(self.tree, into_functions=not on_import_only):
            if isinstance(node, ast.Import):
                imports += [Import(alias.name, node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = self._absolute(node)
                imports += [Import(f"{base}.{alias.name}", node.lineno) for alias in node.names]
            elif isinstance(node, ast.Call) and "import_" in ast.unparse(node.func):
                names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                imports += [Import(name, node.lineno) for name in names if isinstance(name, str)]
        return imports

    def _absolute(self, node: ast.ImportFrom) -> str:
        if node.level == 0:
            return node.module or ""
        parts = self.name.split(".")
        keep = len(parts) - node.level + (1 if self.is_package else 0)
        return ".".join(parts[:keep] + ([node.module] if node.module else []))


def load_modules(root: Path, packages: tuple[str, ...] = PACKAGES) -> dict[str, Module]:
    """Reads every Python file of the packages under `root`, by dotted name."""
    modules = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            modules[name] = Module(name, path.read_text(encoding="utf-8"), is_package)
    return modules


def _walk(node: ast.AST, *, into_functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        if into_functions or not isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        ):
            yield from _walk(child, into_functions=into_functions)


def forbidden_imports(module: Module) -> list[str]:
    """Imports across a boundary that the module's package must not cross."""
    banned = FORBIDDEN.get(module.package, frozenset())
    return [
        f"{module.name}:{imported.line} imports {imported.target}; {module.package}/ must not"
        for imported in module.imports()
        if imported.top in banned
    ]


def heavy_eval_imports(module: Module) -> list[str]:
    """Imports that a module of eval/ needs, beyond numpy, when it is imported itself."""
    allowed = (
        {"numpy", "eval"} | sys.stdlib_module_names | EVAL_ADAPTERS.get(module.name, frozenset())
    )
    if module.package != "eval":
        return []
    return [
        f"{module.name}:{imported.line} imports {imported.target} at once; do it in a function"
        for imported in module.imports(on_import_only=True)
        if imported.top not in allowed
    ]


def stray_dlimp(module: Module) -> list[str]:
    """Imports of dlimp anywhere but at its one import site."""
    if module.name == DLIMP_HOME:
        return []
    return [
        f"{module.name}:{imported.line} imports dlimp; only {DLIMP_HOME} may"
        for imported in module.imports()
        if imported.top == "dlimp"
    ]


def private_jax(module: Module) -> list[str]:
    """Imports, attributes and names in strings that JAX does not make public."""
    if module.name in PRIVATE_JAX_HOMES:
        return []
    names = {imported.line: imported.target for imported in module.imports()}
    for node in ast.walk(module.tree):
        text = ast.unparse(node) if isinstance(node, ast.Attribute) else getattr(node, "value", "")
        if isinstance(text, str) and PRIVATE_JAX.fullmatch(text):
            names[getattr(node, "lineno", 0)] = text
    return [
        f"{module.name}:{line} uses {name}; only {PRIVATE_JAX_HOMES[0]} may"
        for line, name in names.items()
        if PRIVATE_JAX.fullmatch(name)
    ]


def import_cycle(modules: Mapping[str, Module]) -> list[str]:
    """The names along one import cycle, first equal to last; empty where there is none."""
    graph: dict[str, set[str]] = {}
    for name, module in modules.items():
        targets = {_owner(imported.target, modules) for imported in module.imports()}
        graph[name] = {target for target in targets if target is not None and target != name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def upward_imports(modules: Mapping[str, Module]) -> list[str]:
    """Imports of a room that stands below the importer's in `ROOMS`, and rooms without a line."""
    problems = []
    for name, module in modules.items():
        lines = {room: i for i, rooms in enumerate(ROOMS.get(module.package, ())) for room in rooms}
        if not lines or name == module.package:
            continue
        own = lines.get(_room(name), lines.get(""))
        if own is None:
            problems.append(f"{name} is in no room of {module.package}")
            continue
        for imported in module.imports():
            target = _owner(imported.target, modules) or ""
            inside = target.startswith(f"{module.package}.")
            if inside and lines.get(_room(target), lines.get("", 0)) > own:
                problems.append(f"{name}:{imported.line} imports {target}, which is above it")
    return problems


def _room(name: str) -> str:
    return name.split(".")[1]


def crowded_rooms(modules: Mapping[str, Module]) -> list[str]:
    """Folders with more modules than a reader keeps in mind."""
    counts = Counter(
        name.rpartition(".")[0]
        for name, module in modules.items()
        if not module.is_package and module.package not in ("tests", "benchmarks")
    )
    return [
        f"{room} has {count} modules, at most {MAX_TOP_MODULES.get(room, MAX_MODULES)}"
        for room, count in counts.items()
        if count > MAX_TOP_MODULES.get(room, MAX_MODULES)
    ]


def lonely_modules(modules: Mapping[str, Module]) -> list[str]:
    """Short modules that only one module of their own room imports, or none at all."""
    importers: dict[str, set[str]] = {name: set() for name in modules}
    for name, module in modules.items():
        if module.package != "tests":
            for imported in module.imports():
                target = _owner(imported.target, modules)
                if target not in (None, name):
                    importers[target].add(name)
    problems = []
    for name, module in modules.items():
        room = name.rpartition(".")[0]
        short = module.source.count("\n") < MIN_LINES_OF_ONE_IMPORTER
        in_product = module.package in ("xvla_jax", "data", "eval", "scripts")
        is_program = '__name__ == "__main__"' in module.source
        if not in_product or module.is_package or is_program or room in ROOMS_OF_ROWS:
            continue
        outside = any(other.rpartition(".")[0] != room for other in importers[name])
        if short and not outside and len(importers[name]) < 2:
            owner = ", ".join(importers[name]) or "nothing"
            problems.append(f"{name} is short and serves {owner} alone")
    return problems


def _owner(target: str, modules: Mapping[str, Module]) -> str | None:
    """The module of ours that an imported name is in: `a.b.Thing` is in `a.b`."""
    while target:
        if target in modules:
            return target
        target = target.rpartition(".")[0]
    return None


def python38_problems(module: Module) -> list[str]:
    """Syntax and library features that Python 3.8 does not have."""
    try:
        ast.parse(module.source, feature_version=(3, 8))
    except SyntaxError as error:
        return [f"{module.name}:{error.lineno} does not parse on Python 3.8: {error.msg}"]
    problems = []
    for node in _without_annotations(module.tree):
        newer = _newer_feature(node)
        if newer:
            problems.append(f"{module.name}:{getattr(node, 'lineno', 0)} uses {newer}")
    futures = {imported.target for imported in module.imports()}
    if _has_annotations(module.tree) and "__future__.annotations" not in futures:
        problems.append(f"{module.name}: add `from __future__ import annotations`")
    return problems


def _without_annotations(node: ast.AST) -> Iterator[ast.AST]:
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield child
                yield from _without_annotations(child)


def _has_annotations(tree: ast.Module) -> bool:
    nodes = list(ast.walk(tree))
    return any(getattr(n, "annotation", None) or getattr(n, "returns", None) for n in nodes)


def _newer_feature(node: ast.AST) -> str | None:
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        if node.value.id in ("list", "dict", "tuple", "set", "frozenset", "type"):
            return f"{node.value.id}[...] at run time (3.9)"
    elif isinstance(node, ast.Attribute) and node.attr in ("removeprefix", "removesuffix"):
        return f"str.{node.attr} (3.9)"
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
        called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        newer = {"zip": {"strict"}, "dataclass": {"slots", "kw_only"}}.get(called, set())
        used = newer & {keyword.arg for keyword in node.keywords}
        return f"{called}({', '.join(sorted(used))}=) (3.10)" if used else None
    return None


def size_problems(module: Module) -> list[str]:
    """Files and functions that have outgrown the limits."""
    lines = module.source.count("\n")
    problems = (
        [f"{module.name} has {lines} lines, at most {MAX_FILE_LINES}"]
        if lines > MAX_FILE_LINES
        else []
    )
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                problems.append(
                    f"{module.name}:{node.lineno} {node.name} has {length} lines, "
                    f"at most {MAX_FUNCTION_LINES}"
                )
    return problems


def name_problems(module: Module) -> list[str]:
    """Files that are called after nothing in particular."""
    if module.name.split(".")[-1] in JUNK_DRAWERS:
        return [f"{module.name}: name the file after what it holds"]
    return []


def broad_excepts(module: Module) -> list[str]:
    """Handlers that would swallow a programming error, outside of `BROAD_DOOR`."""
    allowed = {
        id(node)
        for function in module.tree.body
        if (module.name, getattr(function, "name", "")) == BROAD_DOOR
        for node in ast.walk(function)
    }
    return [
        f"{module.name}:{node.lineno} catches everything; name the errors that are expected"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ExceptHandler)
        and id(node) not in allowed
        and (node.type is None or re.search(r"\b(Base)?Exception\b", ast.unparse(node.type)))
    ]


def text_problems(where: str, text: str) -> list[str]:
    """Unfinished marks, paths of a developer's machine and hosts of package registries."""
    rules = (
        (UNFINISHED, "unfinished"),
        (MACHINE_PATHS, "path of a machine"),
        (REGISTRY_HOSTS, "registry host"),
    )
    return [
        f"{where}:{number} {what}: {line.strip()[:80]}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern, what in rules
        if pattern.search(line)
    ]
