"""Small evaluations on the fake simulator, for tests."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from eval.runs.evaluation import Contestant, Evaluation, Options, Task
from eval.runs.receipt import evaluated
from eval.runs.seal import links, sealed
from eval.runs.shards import Shard
from eval.tasks.spec import SUCCESS
from eval.tasks.table import Episode, Reference
from tests.eval import fakes

PLAN = [Episode(3, index, 42 + index) for index in range(30, 42)]
SPEC = dataclasses.replace(fakes.SPEC, reference=(Reference(90.0, SUCCESS, "somebody"),))
TASK = Task(SPEC, PLAN)
NOISE = 0.02


@contextlib.contextmanager
def silence(what: str, total: int) -> Iterator[Any]:
    yield lambda *_: None


def options(folder: Path, **changes: Any) -> Options:
    made = Options(
        num_workers=2,
        shard=Shard(1, 1),
        restart=False,
        accept_renderer=False,
        alpha=None,
        film="",
        config={"seed": 0, "command": ["--seed=0"]},
        versions={"jax": "0"},
        git=None,
        golden_frames=folder / "golden",
    )
    return dataclasses.replace(made, **changes)


def contestant(name: str, noise: float, sha: str = "ab12") -> Contestant:
    identity = {"kind": "checkpoint", "source": "runs/hf", "hash": sha, "contracts": {}}
    return Contestant(name, fakes.SightPolicy(noise), identity)


EXPERT = Contestant("script", None, {"kind": "expert", "source": "", "hash": None, "contracts": {}})


def evaluate(out: Path, *contestants: Contestant, task: Task = TASK, **changes: Any) -> Any:
    out.mkdir(exist_ok=True)
    made = Evaluation(
        contestants, options(out, **changes), out, silence, open_pool=cast(Any, fakes.LocalPool)
    )
    return made.run([task])


def resealed(receipt: Any) -> Any:
    """A copy of a changed receipt whose links and seal fit again, as a forger would make it."""
    copy = json.loads(json.dumps(receipt))
    for task in copy["tasks"].values():
        for policy, entry in task["policies"].items():
            begun = evaluated(copy["policies"][policy], task["row"])
            entry["chain"] = links(begun, entry["episodes"])
    return sealed(copy)


def episodes(receipt: Any, policy: str) -> list[dict[str, Any]]:
    records = receipt["tasks"]["quickstart"]["policies"][policy]["episodes"]
    return [{k: v for k, v in episode.items() if k != "seconds"} for episode in records]
