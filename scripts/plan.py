"""Predicts memory, traffic and step time of a run on a TPU slice; no TPU is needed.

python -m scripts.plan --config=configs/pretrain.py --topology=v5p:4x4x4 [--config.a.b=v]
python -m scripts.plan --config=configs/own_robot.py:50 --topology=gpu --config.data.mixture=M:ROW
python -m scripts.plan --warm --config=configs/X.py [the --config.a.b=v of scripts.train]

Compiles the real train step (with --inference the sampler too) for the slice from shapes alone. The
model is config.model; no checkpoint or data is read. Needs libtpu: bash scripts/setup.sh tpu. The
full model compiles in about 17 minutes on two cores (docs/planner.md); the search for the largest
batch takes up to four times as long again: --nolargest leaves it out. Topologies gpu (cards of 24,
48 and 80 GB), gpu:24 and cpu compare memory alone, compiled for this CPU, and need no libtpu. Exit
status 1 where a run does not fit; of gpu, where it fits none of the cards.

--warm plans nothing: it compiles for the devices of this machine what scripts.train will run with
the same config, and keeps it, so that the run starts without compiling. It reads the headers of
data and checkpoint, and no weights.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from scripts.terminal import Command, UsageError, message, quiet_libraries

if TYPE_CHECKING:
    from xvla_jax.planning.cards import Card
    from xvla_jax.planning.programs import Run

COMMAND = Command(__doc__, in_buckets=("config.data.root", "program_cache"))
_CONFIG = COMMAND.DEFINE_config("config", "Config file; --config.a.b=v changes a field.")
_TOPOLOGY = COMMAND.DEFINE_list(
    "topology", [], "Slices, such as v5e:4x4,v5e:8x8; or gpu, gpu:24, cpu. Needed but for --warm."
)
_WARM = COMMAND.DEFINE_bool("warm", False, "Compile ahead of a run of scripts.train.")
_PROGRAMS = COMMAND.DEFINE_string(
    "program_cache", None, "For --warm: folder or bucket of compiled programs."
)
_INFERENCE = COMMAND.DEFINE_bool("inference", False, "Compile the sampler too.")
_VIEWS = COMMAND.DEFINE_integer(
    "num_views", 0, "Views that the data fills; 0: as its rows say, or all slots.", lower_bound=0
)
_LARGEST = COMMAND.DEFINE_bool("largest", True, "Search for the largest batch that fits.")
_BY_STAGE = COMMAND.DEFINE_bool(
    "by_stage", False, "Print the step's work by stage, pass and kind too."
)
_JSON = COMMAND.DEFINE_bool("json", False, "Print the plans as JSON.")
_MARKDOWN = COMMAND.DEFINE_bool("markdown", False, "Print the plans as a Markdown table.")
COMMAND.DEFINE_alias("views", "num_views")


def main(_: list[str]) -> int:
    """Plans or warms, prints, and returns the exit status."""
    if _WARM.value == bool(_TOPOLOGY.value):
        raise UsageError("either --topology or --warm must be given")
    return _warm() if _WARM.value else _plan()


def _plan() -> int:
    """Plans for all topologies, and returns the exit status."""
    # The compiler describes the slice; this process itself needs no accelerator.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from scripts.training.planning import as_markdown, run_of, stage_tables
    from scripts.training.values import check_values
    from xvla_jax.errors import XVLAError
    from xvla_jax.planning.cards import cards

    console = Console(stderr=_JSON.value or _MARKDOWN.value)
    plans, on_cards = [], []
    try:
        check_values(_CONFIG.value.to_dict())
        run = run_of(_CONFIG.value, _VIEWS.value)
        for name in _TOPOLOGY.value:
            chosen = cards(name)
            if chosen is None:
                plans.append(_on_slice(run, name, console))
            else:
                on_cards.append(_on_cards(run, chosen, console))
    except (XVLAError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if _JSON.value:
        print(json.dumps([*plans, *(plan for made in on_cards for plan in made)], indent=1))
    if _MARKDOWN.value:
        print("\n\n".join([as_markdown(plans), *stage_tables(plans)]))
    fit_cards = all(any(plan["fits"] for plan in made) for made in on_cards)
    return 0 if fit_cards and all(plan["fits"] for plan in plans) else 1


def _on_slice(run: Run, name: str, console: Console) -> dict[str, Any]:
    """Plans a run on a TPU slice, and prints the plan."""
    from scripts.training.planning import packed_run, pipeline_bytes, print_plan
    from xvla_jax.planning.chips import describe
    from xvla_jax.planning.report import make_plan
    from xvla_jax.sharding import global_batch_size

    config, target = _CONFIG.value, describe(name)
    size, per, devices = config.batch_size, config.batch_size_per, len(target.devices)
    run = dataclasses.replace(run, batch_size=global_batch_size(size, per=per, devices=devices))
    run, packed = packed_run(config, run, devices=devices)
    plan = make_plan(
        run,
        target,
        pipeline=pipeline_bytes(config, run, target),
        inference=_INFERENCE.value,
        largest=_LARGEST.value,
        stages=_BY_STAGE.value,
        say=console.log,
    )
    print_plan(console, plan, packed)
    return plan


def _on_cards(run: Run, chosen: Sequence[Card], console: Console) -> list[dict[str, Any]]:
    """Plans the memory of a run on single cards, and prints the plans."""
    from scripts.training.planning import packed_run, print_cards
    from xvla_jax.planning.cards import card_plans

    alone, packed = packed_run(_CONFIG.value, run, devices=1)
    plans = card_plans(alone, chosen, say=console.log)
    print_cards(console, plans, packed)
    return plans


def _warm() -> int:
    """Fills the cache of compiled programs, and returns the exit status."""
    from scripts.training.group_table import group_table
    from scripts.training.run import TrainingRun
    from scripts.training.values import check_values
    from scripts.training.warm import End, warm
    from xvla_jax.compilation.program_cache import folder_in_use, keep_programs
    from xvla_jax.errors import ConfigError, XVLAError

    console = Console()
    quiet_libraries()
    lost = 0
    try:
        check_values(_CONFIG.value.to_dict())
        kept = keep_programs(_PROGRAMS.value)
        if folder_in_use() is None:
            raise ConfigError(f"{kept}; --warm compiles to keep: name a --program_cache=FOLDER")
        run = TrainingRun.open(_CONFIG.value, COMMAND.fields_set("config"), weights=False)
        console.print(group_table(run.recipe.group_rows()))
        for program in warm(run, say=console.log):
            console.log(f"{program.name} {program.end} ({program.seconds:.1f} s)", highlight=False)
            lost += program.end is End.LOST
    except (XVLAError, OSError, ValueError) as error:
        print(f"error: {message(error)}", file=sys.stderr)
        return 1
    console.print(kept, markup=False, highlight=False, soft_wrap=True)
    return 1 if lost else 0


if __name__ == "__main__":
    # Python would hear Ctrl-C behind the compiler alone, which takes minutes.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(COMMAND.run(main, sys.argv))
