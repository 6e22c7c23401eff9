"""The cells of the experiment: commands that make the base, and those of each way to adapt it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from benchmarks.adaptation.domains import MODULE, ROWS, STORED_AS, mixture
from scripts.demo.stages import ROBOTS, TRAIN, Stage

BASE = "base/train"
CHOICE = "nearest/choice.json"
NEAREST = "nearest/ready"  # the base with the new domain copied from the nearest one
_DATA = "data"  # folder of the new robot's
HELD_OUT = f"{_DATA}/held_out"
NEW_DOMAIN = 0  # id of the SO-101's row in data/rows/video.py
_ROBOT = ROBOTS["so101"]
DATASET = _ROBOT["dataset"]  # of the new robot
# folder of the new robot's data -> its files among the 60 demonstrations
PARTS: Mapping[str, str] = {
    f"{_DATA}/10": "episode_0000*.npz",
    f"{_DATA}/20": "episode_000[01]*.npz",
    f"{_DATA}/50": "episode_000[0-4]*.npz",
    HELD_OUT: "episode_0005*.npz",
}


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to the new robot.

    Attributes:
        title: for the table.
        start: checkpoint to begin with, in the folder of the experiment; none: random weights.
        flags: of scripts.train beside those of all cells.
    """

    title: str
    start: str | None
    flags: tuple[str, ...] = ()


_FIRST = "--config.optimizer.freeze_steps={first}"
METHODS: Mapping[str, Method] = {
    "scratch": Method("from scratch", None),
    "full": Method("all at once", BASE),
    "two_step": Method("two-step", BASE, (_FIRST,)),
    "lora": Method("LoRA, rank 8", BASE, (_FIRST, "--config.lora.rank=8")),
    "prompt": Method("prompt and heads only", BASE, ("--config.optimizer.mode=prompts_and_heads",)),
    "nearest": Method("two-step, nearest prompt", NEAREST, (_FIRST,)),
}


@dataclasses.dataclass(frozen=True)
class Size:
    """Numbers of all cells alike.

    Attributes:
        base_steps: of the base, at a batch of 32.
        steps: of a cell.
        batch: samples of a step of a cell.
    """

    base_steps: int
    steps: int
    batch: int

    @property
    def first(self) -> int:
        """Steps in which prompt and heads train alone, where there are two."""
        return self.steps // 5


@dataclasses.dataclass(frozen=True)
class Cell:
    """A method, a number of demonstrations and a seed of the training."""

    demonstrations: int
    method: str
    seed: int = 0

    @property
    def name(self) -> str:
        """Name of the cell on the command line and of its folder."""
        return f"{self.demonstrations}-{self.method}" + (f"-{self.seed}" if self.seed else "")

    @property
    def folder(self) -> str:
        """Folder of its run and its evaluation."""
        return f"cells/{self.name}"


# the comparison of the middle size first, so that a part of the experiment says something
CELLS: Mapping[str, Cell] = {
    cell.name: cell
    for cell in (
        *(Cell(20, method) for method in METHODS),
        *(Cell(size, method) for size in (50, 10) for method in METHODS if method != "nearest"),
        *(Cell(20, method, seed) for seed in (1,) for method in METHODS),
    )
}


def base_stages(out: str, size: Size) -> list[Stage]:
    """Returns the commands up to the base and the new robot's data."""
    stages: list[Stage] = []
    for name in map(str.lower, ROWS):
        folder = f"base/{name}"
        stages.append(_recording(out, name, f"{folder}/demonstrations"))
        stages.append(_written(out, f"{folder}/demonstrations", STORED_AS, folder))
    flags = (
        f"--config.data.mixture={mixture()}",
        f"--config.data.root={out}/base",
        f"--config.optimizer.iters={size.base_steps}",
    )
    stages.append(_training("train the base", "configs/quickstart.py", out, BASE, flags))
    stages.append(_recording(out, "robot", "demonstrations"))
    for folder, pattern in PARTS.items():
        stages.append(_written(out, f"demonstrations/{pattern}", DATASET, folder))
    return stages


def choosing(out: str) -> Stage:
    """Returns the command that chooses the nearest domain of the base."""
    arguments = (
        "scripts.prompt",
        "nearest",
        f"{out}/{BASE}",
        f"--data={DATASET}",
        f"--root={out}/data/20",
        f"--report={out}/{CHOICE}",
    )
    return Stage("choose the nearest prompt", arguments, CHOICE)


def copying(out: str, domain_id: int) -> Stage:
    """Returns the command that copies a domain of the base for the new robot."""
    arguments = (
        "scripts.prompt",
        "add",
        f"{out}/{BASE}",
        f"{out}/{NEAREST}",
        f"--domain={NEW_DOMAIN}",
        f"--from={domain_id}",
    )
    return Stage("copy the nearest prompt", arguments, NEAREST)


def cell_stages(out: str, cell: Cell, size: Size) -> list[Stage]:
    """Returns the commands of a cell: train and evaluate."""
    method = METHODS[cell.method]
    flags = [
        f"--config.data.mixture={DATASET}",
        f"--config.data.root={out}/data/{cell.demonstrations}",
        f"--config.optimizer.iters={size.steps}",
        f"--config.batch_size={size.batch}",
        f"--config.seed={cell.seed}",
        "--config.rollouts.task=",  # a cell is evaluated at its end alone
        *(flag.format(first=size.first) for flag in method.flags),
    ]
    if method.start:
        flags += [
            "--config.from_scratch=False",
            f"--config.init_from={out}/{method.start}",
            "--config.action_mode=auto",
        ]
    run = f"{cell.folder}/train"
    train = _training(f"{cell.name}: train", _ROBOT["config"], out, run, tuple(flags))
    evaluate = Stage(
        f"{cell.name}: evaluate",
        (
            "scripts.evaluate",
            f"--tasks={_ROBOT['task']}",
            f"--policy={cell.name}={out}/{run}",
            f"--out={out}/{cell.folder}/evaluation",
            "--film=",
            "--restart",
            "--accept_renderer",
        ),
        f"{cell.folder}/evaluation/results.json",
        _cache(out),
    )
    return [train, evaluate]


def _cache(out: str) -> tuple[tuple[str, str], ...]:
    return (("JAX_COMPILATION_CACHE_DIR", f"{out}/compiled"),)


def _training(name: str, config: str, out: str, run: str, flags: tuple[str, ...]) -> Stage:
    arguments = (
        "scripts.train",
        f"--config={config}",
        f"--workdir={out}/{run}",
        "--config.save_every=100000",
        "--config.rollouts.task=",  # evaluated afterwards, on all states
        *flags,
    )
    environment = (*TRAIN.environment, *_cache(out))
    return Stage(name, arguments, f"{run}/checkpoints", environment)


def _recording(out: str, name: str, folder: str) -> Stage:
    arguments = (MODULE, name, f"{out}/{folder}")
    return Stage(f"record {name}", arguments, f"{folder}/recording.json")


def _written(out: str, source: str, dataset: str, folder: str) -> Stage:
    arguments = (
        "scripts.build_rlds",
        f"--recorded={out}/{source}",
        f"--recorded_as={dataset}",
        f"--out={out}/{folder}",
        "--licence=Apache-2.0",
    )
    return Stage(f"write {folder}", arguments, f"{folder}/{dataset}")
