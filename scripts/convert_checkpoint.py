"""Converts a checkpoint: ``python -m scripts.convert_checkpoint SRC DST --layout=hf [--verify]``.

SRC is of any layout (Hugging Face, LeRobot, Orbax workdir or step); DST appears whole or not at
all.
``--verify`` reads DST back and compares parameters, and actions from the same noise.
"""

from __future__ import annotations

import pathlib
import sys
from typing import Any

import jax
import numpy as np
from absl import app, flags
from rich.console import Console

from eval.receipt import write_json
from scripts.logs import quiet_libraries
from xvla_jax.actions import action_space
from xvla_jax.batch import Observation
from xvla_jax.errors import CheckpointError, XVLAError
from xvla_jax.policy import Policy
from xvla_jax.pretrained import Pretrained, load_checkpoint, save_pretrained
from xvla_jax.torch_names import DIALECTS

_LAYOUT = flags.DEFINE_enum("layout", None, sorted(DIALECTS), "Layout of DST.", required=True)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace DST, once the new one is whole.")
_VERIFY = flags.DEFINE_bool("verify", False, "Read DST back and compare actions.")
_REPORT = flags.DEFINE_string("report", "", "JSON file for what --verify found.")
_OBSERVATIONS = 4


def verify(source: Pretrained, folder: pathlib.Path) -> dict[str, Any]:
    """Largest differences between a checkpoint and the folder that was written from it."""
    if source.processor is None:
        raise CheckpointError("--verify compares actions, and SRC has no preprocessor_config.json")
    written = load_checkpoint(folder)
    equal = jax.tree.map(np.array_equal, source.params, written.params)
    ours = Policy(source.config, source.params, source.processor, source.contracts)
    theirs = Policy.from_pretrained(folder)
    observations = _random_observations(source)
    seeds = list(range(_OBSERVATIONS))
    actions = ours.act(observations, seed=seeds)
    difference = np.abs(actions - theirs.act(observations, seed=seeds))
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(source.params)),
        "parameters_equal": all(jax.tree.leaves(equal)),
        "chunks_compared": len(actions),
        "largest_action": float(np.abs(actions).max()),
        "largest_action_difference": float(difference.max()),
    }


def _random_observations(source: Pretrained) -> list[Observation]:
    rng = np.random.default_rng(0)
    width = action_space(source.config).width
    domains = sorted(source.contracts) or [0]
    return [
        {
            "images": [rng.integers(0, 256, (96, 128, 3), dtype=np.uint8) for _ in range(2)],
            "instruction": "pick up the bottle and place it in the basket",
            "proprio": rng.normal(size=width).astype(np.float32),
            "domain_id": domains[i % len(domains)],
        }
        for i in range(_OBSERVATIONS)
    ]


def main(argv: list[str]) -> int:
    """Returns the exit status: 0, or 1 when anything is wrong or differs."""
    if len(argv) != 3:
        raise app.UsageError("SRC and DST are needed")
    quiet_libraries()
    console = Console()
    target = pathlib.Path(argv[2])
    try:
        source = load_checkpoint(argv[1])
        save_pretrained(
            target,
            source.config,
            source.params,
            _LAYOUT.value,
            processor=source.processor,
            contracts=source.contracts,
            overwrite=_OVERWRITE.value,
        )
        found = verify(source, target) if _VERIFY.value else None
    except XVLAError as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    console.print(f"{target}: written in layout {_LAYOUT.value}", markup=False)
    if found is None:
        return 0
    console.print(
        f"{found['parameters']:,} parameters read back, equal: {found['parameters_equal']}; "
        f"{found['chunks_compared']} chunks from the same noise, largest action difference "
        f"{found['largest_action_difference']:g} of {found['largest_action']:.3g}"
    )
    if _REPORT.value:
        write_json(pathlib.Path(_REPORT.value), found)
    return 0 if found["parameters_equal"] and not found["largest_action_difference"] else 1


if __name__ == "__main__":
    sys.exit(app.run(main))
