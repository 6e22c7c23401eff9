"""Predicts memory, traffic and step time of a run on a TPU slice; no TPU is needed.

python -m scripts.plan --config=configs/pretrain.py --topology=v5p:4x4x4 [--config.a.b=v]
python -m scripts.plan --config=configs/own_robot.py:50 --topology=gpu --config.data.mixture=M:ROW

Compiles the real train step (with --inference the sampler too) for the slice from shapes alone. The
model is config.model; no checkpoint or data is read. Needs libtpu: bash scripts/setup.sh tpu. The
full model compiles in about 17 minutes on two cores (docs/planner.md); the search for the largest
batch takes up to four times as long again: --nolargest leaves it out. Topologies gpu (cards of 24,
48 and 80 GB), gpu:24 and cpu compare memory alone, compiled for this CPU, and need no libtpu. Exit
status 1 where a run does not fit; of gpu, where it fits none of the cards.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys

from rich.console import Console

from scripts.terminal import Command

COMMAND = Command(__doc__, in_buckets=("config.data.root",))
_CONFIG = COMMAND.DEFINE_config("config", "Config file; --config.a.b=v changes a field.")
_TOPOLOGY = COMMAND.DEFINE_list(
    "topology", None, "Slices, such as v5e:4x4,v5e:8x8; or gpu, gpu:24, cpu.", required=True
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
    """Plans, prints, and returns the exit status."""
    # The compiler describes the slice; this process itself needs no accelerator.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from scripts.training.planning import (
        as_markdown,
        pipeline_bytes,
        print_cards,
        print_plan,
        run_of,
        stage_tables,
    )
    from xvla_jax.errors import XVLAError
    from xvla_jax.planning.cards import card_plans, cards
    from xvla_jax.planning.chips import describe
    from xvla_jax.planning.report import make_plan
    from xvla_jax.sharding import global_batch_size

    config = _CONFIG.value
    console = Console(stderr=_JSON.value or _MARKDOWN.value)
    plans, on_cards = [], []
    try:
        run = run_of(config, _VIEWS.value)
        for name in _TOPOLOGY.value:
            chosen = cards(name)
            if chosen is not None:
                made = card_plans(run, chosen, say=console.log)
                on_cards.append(made)
                print_cards(console, made)
                continue
            target = describe(name)
            batch_size = global_batch_size(
                config.batch_size, per=config.batch_size_per, devices=len(target.devices)
            )
            run = dataclasses.replace(run, batch_size=batch_size)
            plan = make_plan(
                run,
                target,
                pipeline=pipeline_bytes(config, run, target),
                inference=_INFERENCE.value,
                largest=_LARGEST.value,
                stages=_BY_STAGE.value,
                say=console.log,
            )
            plans.append(plan)
            print_plan(console, plan)
    except (XVLAError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if _JSON.value:
        print(json.dumps([*plans, *(plan for made in on_cards for plan in made)], indent=1))
    if _MARKDOWN.value:
        print("\n\n".join([as_markdown(plans), *stage_tables(plans)]))
    fit_cards = all(any(plan["fits"] for plan in made) for made in on_cards)
    return 0 if fit_cards and all(plan["fits"] for plan in plans) else 1


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
