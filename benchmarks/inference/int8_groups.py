"""Drift that int8 weights cause by group of parameters, from the float32 weights.

Run it as a module; its flags name checkpoint, dataset and data folder.

Each group of ``models.int8.GROUPS`` is rounded alone, then all, all by default, and all clipped:
with the scale of each channel, of a row of candidates, that has the least squared error in place of
the one that covers the largest value. Frames and noise are the same for all. The products are of
float32 weights that were rounded, so one program serves all rows; int8 products give the same up to
float32 rounding. Prints a Markdown table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from rich.console import Console

from data.rows.mixtures import mixture
from data.sources import open_mixture
from scripts.evaluation.drift import drifts, quantities
from scripts.evaluation.recorded import acted, frames_of, observation_of
from scripts.terminal import Command, count_progress, quiet_libraries
from xvla_jax.models.inference import inference_params
from xvla_jax.models.int8 import DEFAULT_GROUPS, GROUPS, group_of, int8_params, quantised
from xvla_jax.plans import DEFAULT
from xvla_jax.policy import Policy
from xvla_jax.pretrained import load_checkpoint

_CLIPS = np.arange(0.5, 1.01, 0.05)  # candidates, as shares of a channel's largest value

COMMAND = Command(__doc__, rows={"data": "data"})
_CHECKPOINT = COMMAND.DEFINE_string("checkpoint", None, "Float32 weights.", required=True)
_DATA = COMMAND.DEFINE_string("data", None, "Dataset of one domain.", required=True)
_ROOT = COMMAND.DEFINE_string("root", None, "Its data folder.", required=True)
_EPISODES = COMMAND.DEFINE_integer("episodes", 16, "Recorded episodes, four frames each.")


def clipped(value: np.ndarray, group: str) -> np.ndarray:
    """Rounds an array to int8 and back, with the best of `_CLIPS` for each channel."""
    shared = GROUPS[group].shared
    top = np.abs(value).max(axis=shared, keepdims=True)
    best, least = np.zeros_like(value), np.full_like(top, np.inf)
    for share in _CLIPS:
        scale = np.maximum(top * share / 127, np.finfo(np.float32).tiny).astype(np.float32)
        made = np.clip(np.rint(value / scale), -127, 127) * scale
        error = ((made - value) ** 2).sum(axis=shared, keepdims=True)
        best, least = np.where(error < least, made, best), np.minimum(error, least)
    return best


def variants(params: Mapping[str, Any]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yields name, number of rounded parameters, and parameters as float32 arrays."""
    rows = {name: (name,) for name in GROUPS} | {
        "all": tuple(GROUPS),
        "default": tuple(DEFAULT_GROUPS),
    }
    for name, groups in rows.items():
        made = int8_params(params, groups)
        pairs = zip(jax.tree.leaves(made), jax.tree.leaves(params), strict=True)
        count = sum(leaf.size for leaf, before in pairs if leaf is not before)
        yield name, count, jax.tree.map(np.asarray, made)
    flat: Any = flatten_dict(dict(params))
    grouped = {path: group_of(path) for path in flat}
    made = {
        path: clipped(leaf, group) if (group := grouped[path]) in DEFAULT_GROUPS else leaf
        for path, leaf in flat.items()
    }
    yield "default, clipped", count, unflatten_dict(made)


def relative_error(params: Mapping[str, Any], group: str) -> float:
    """Returns the root mean square of rounding, as a share of that of the weights."""
    flat: Any = flatten_dict(dict(params))
    values = [leaf for path, leaf in flat.items() if group_of(path) == group]
    made = [np.asarray(quantised(value, group).expanded()) for value in values]
    error = sum(((a - b) ** 2).sum() for a, b in zip(made, values, strict=True))
    return float(np.sqrt(error / sum((value**2).sum() for value in values)))


def main(_: list[str]) -> int:
    """Returns the exit status."""
    quiet_libraries()
    console = Console()
    loaded = load_checkpoint(_CHECKPOINT.value)
    policy = Policy.from_pretrained(_CHECKPOINT.value)
    (source,) = open_mixture(mixture(_DATA.value), _ROOT.value)
    frames = list(frames_of(policy, source, _EPISODES.value))
    observations = [observation_of(frame) for frame in frames]

    def acted_with(params: Mapping[str, Any]) -> np.ndarray:
        policy.params = inference_params(params, place=jax.device_put)
        return acted(policy, observations, DEFAULT)

    recorded = np.stack([frame.batch["actions"][0] for frame in frames])
    named = quantities(policy.space, policy.contracts[observations[0]["domain_id"]])
    default, table = acted_with(loaded.params), list[list[str]]()
    with count_progress(console, "rows") as show:
        for name, count, params in variants(loaded.params):
            drift = drifts(named, default, acted_with(params), recorded)
            error = f"{relative_error(loaded.params, name):.2%}" if name in GROUPS else ""
            cells = [f"{d.mean:.2g} {d.unit} ({d.mean / d.own_error:.0%})" for d in drift.values()]
            table.append([name, f"{count:,}", error, *cells])
            show(len(table), len(GROUPS) + 3)
    titles = ["group", "parameters", "rounding", *drift]
    for row in (titles, ["---"] * len(titles), *table):
        console.print(f"| {' | '.join(row)} |", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
