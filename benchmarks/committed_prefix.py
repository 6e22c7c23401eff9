"""Measures how a chunk continues given rows: ``python -m benchmarks.committed_prefix``.

``python -m benchmarks.committed_prefix --checkpoint=FOLDER --data=NAME --root=FOLDER
[--delays=0,2,4,8,12] [--episodes=16] [--plan=exact10] [--out=FILE.json]``

The first rows of recorded chunks are committed and the rest is sampled, with the same noise each
time: without a prefix (``switch``), inpainted, and by what the weights were trained for, where they
were. In millimetres from the recording: the first row behind the committed ones, which is where a
robot would jump, and the mean of all rows behind them.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from absl import app, flags
from rich import box
from rich.console import Console
from rich.table import Table

from data.rows.mixtures import mixture
from data.sources import open_mixture
from data.stream.pipeline import Frame
from eval.files import write_json
from scripts.evaluation.drift import quantities
from scripts.evaluation.recorded import acted, frames_of, observation_of
from scripts.terminal import count_progress, quiet_libraries
from xvla_jax.inpainting import MODES
from xvla_jax.plans import named_plan
from xvla_jax.policy import Policy

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Any layout.", required=True)
_DATA = flags.DEFINE_string("data", None, "Dataset of poses, or module:ROW.", required=True)
_ROOT = flags.DEFINE_string("root", None, "Its data folder.", required=True)
_OUT = flags.DEFINE_string("out", "outputs/committed_prefix.json", "Where the figures go.")
_DELAYS = flags.DEFINE_list("delays", ["0", "2", "4", "8", "12"], "Committed rows.")
_EPISODES = flags.DEFINE_integer("episodes", 16, "Four frames of each.", lower_bound=1)
_PLAN = flags.DEFINE_string("plan", "exact10", "Row of xvla_jax/plans.py.")

_SWITCH: Final = "switch"  # no prefix


def measure(policy: Policy, frames: Sequence[Frame], console: Console) -> list[dict[str, Any]]:
    """Returns a record for each delay and way: mm of the first free row, and of all free rows."""
    domain = int(frames[0].batch["domain_id"][0])
    recorded = np.stack([frame.batch["actions"][0] for frame in frames])  # [N, T, d]
    position = next(
        q
        for q in quantities(policy.space, policy.contracts[domain])
        if q.unit == "mm" and recorded[..., q.arm].any()
    )
    ways = [_SWITCH, *(m for m, row in MODES.items() if not row.trained or _knows(policy))]
    cells = [(int(delay), way) for delay in _DELAYS.value for way in ways]
    records = []
    with count_progress(console, "cells") as show:
        for number, (delay, way) in enumerate(cells, 1):
            actions = _acted(policy, frames, delay, way)
            error = position.distance(
                actions[..., position.channels], recorded[..., position.channels]
            )  # [N, T]
            first, rest = float(error[:, delay].mean()), float(error[:, delay:].mean())
            records.append({"delay": delay, "way": way, "first": first, "rest": rest})
            show(number, len(cells))
    return records


def _knows(policy: Policy) -> bool:
    return policy.config.rtc_max_delay >= max(map(int, _DELAYS.value))


def _acted(policy: Policy, frames: Sequence[Frame], delay: int, way: str) -> np.ndarray:
    """Returns chunks [N, T, d] that continue recorded rows; a frame has the noise of its place."""
    observations = [
        observation_of(frame)
        | ({"prefix": _rows(policy, frame)[:delay], "prefix_mode": way} if way != _SWITCH else {})
        for frame in frames
    ]
    return acted(policy, observations, named_plan(_PLAN.value))


def _rows(policy: Policy, frame: Frame) -> np.ndarray:
    return frame.batch["actions"][0][:, : policy.space.real_width]


def main(_: list[str]) -> None:
    """Prints the table and writes its figures."""
    quiet_libraries()
    console = Console()
    policy = Policy.from_pretrained(_CHECKPOINT.value)
    (source,) = open_mixture(mixture(_DATA.value), _ROOT.value)
    frames = list(frames_of(policy, source, _EPISODES.value))
    records = measure(policy, frames, console)
    table = Table(title=f"mm from the recording, {len(frames)} frames", box=box.SIMPLE)
    for heading in ("committed rows", "way", "first row behind", "all rows behind"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for one in records:
        table.add_row(str(one["delay"]), one["way"], f"{one['first']:.1f}", f"{one['rest']:.1f}")
    console.print(table)
    out = pathlib.Path(_OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {"checkpoint": _CHECKPOINT.value, "frames": len(frames), "cells": records})
    console.print(f"written to {out}", markup=False)


if __name__ == "__main__":
    app.run(main)
