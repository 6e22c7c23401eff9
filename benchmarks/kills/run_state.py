"""The state from which a training run resumes, read back from its workdir."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from xvla_jax.checkpoints.run_folder import CHECKPOINTS
from xvla_jax.training.telemetry import read_metrics


def newest_step(workdir: pathlib.Path) -> int:
    """Returns the step of the newest complete checkpoint; 0 if there is none."""
    folder = workdir / CHECKPOINTS
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def saved_state(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns parameters and moments of the newest checkpoint as numpy, and its data position."""
    newest = workdir / CHECKPOINTS / str(newest_step(workdir))
    state: dict[str, Any] = {"position": json.loads((newest / "position/metadata").read_text())}
    for item in ("params", "opt_state"):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            metadata: Any = reader.metadata(newest / item)
            as_numpy = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.item_metadata.tree
            )
            state[item] = reader.restore(
                newest / item, args=ocp.args.PyTreeRestore(restore_args=as_numpy)
            )
    return state


def different(ours: pathlib.Path, theirs: pathlib.Path) -> list[str]:
    """Lists the parts in which two runs differ by any bit: step, losses, arrays, position."""
    differing = []
    if newest_step(ours) != newest_step(theirs):
        differing.append(f"step {newest_step(ours)} and {newest_step(theirs)}")
    losses = [[(r["step"], r["loss"]) for r in read_metrics(run)] for run in (ours, theirs)]
    if losses[0] != losses[1]:
        differing.append("losses")
    a, b = saved_state(ours), saved_state(theirs)
    for item in a:
        same = jax.tree.map(np.array_equal, a[item], b[item])
        if not all(jax.tree.leaves(same)):
            differing.append(item)
    return differing
