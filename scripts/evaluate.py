"""Evaluates policies in closed loop: many simulators, one batched call, a receipt and a page.

python -m scripts.evaluate --policy=CHECKPOINT --tasks=libero_spatial,libero_goal --episodes=50 \
    --out=FOLDER [--workers=2] [--shard=1/4] [--accept_renderer] [--simulator_python=EXE]
python -m scripts.evaluate --tasks=quickstart --init_states=30:80 --out=FOLDER \
    --policy=trained=CHECKPOINT --policy=script=expert: [--task_ids=3,1,8] [--stop_early]
python -m scripts.evaluate --tasks=quickstart:camera2,quickstart:light3 --out=FOLDER \
    --policy=CHECKPOINT [--executed=10] [--step_limit=200] [--steps=5]
python -m scripts.evaluate --tasks=quickstart --out=FOLDER --policy=exact=CHECKPOINT \
    --policy=cheap=CHECKPOINT --plan=cheap=frozen3

A policy is [NAME=][KIND:]FOLDER. Kinds: none (a checkpoint of any layout), `untrained` (its shape
with random weights), `blind` (the checkpoint with black images), `expert` (scripted, no folder),
`server` (its URL: server:http://HOST:PORT or ws://), `lerobot` (a checkpoint in one of LeRobot's
layouts acts inside LeRobot, in the environment of --lerobot_python).
Where the expert takes part, all are evaluated on the tasks that it has a plan for
(eval/simulators/plans.py).

A row of LIBERO takes a disturbance behind its name, AXIS and LEVEL; the row itself is evaluated
too, as its control arm. --list shows the axes. --executed, --step_limit and --steps change a column
of all rows, and the receipt says so.

FOLDER may be gs://BUCKET/FOLDER. The same command resumes an interrupted evaluation.
scripts.merge_results merges shards; docs/receipts.md explains how to read and compare the results.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from eval.client.transports import RemoteError
from eval.disturbances.axes import split_name
from eval.files import write_json
from eval.pages.evaluation import write_evaluation_page
from eval.runs.evaluation import Evaluation, Options, Task
from eval.runs.golden_frame import GoldenFrameError
from eval.runs.journal import JournalError
from eval.runs.receipt import RESULTS
from eval.runs.shards import parse_shard
from eval.runs.statistics import ALPHA
from eval.simulators.preflight import SimulatorSetupError, versions
from eval.simulators.workers import WorkerError
from eval.tasks.table import episodes, evaluation_states, parse_states, task_spec
from eval.tasks.variants import overridden
from scripts.evaluation.receipts import NEEDED
from scripts.evaluation.simulators import define_simulator_python, pools_in
from scripts.evaluation.success_table import PAGE, print_power, print_tables
from scripts.places import files
from scripts.places.workdir import held
from scripts.terminal import STOPPED, Command, UsageError, episode_progress, quiet_libraries

if TYPE_CHECKING:
    from scripts.evaluation.entrants import Entrant

_POLICY_SIDE = ("jax", "jaxlib", "flax", "numpy", "transformers")

COMMAND = Command(
    __doc__, rows={"tasks": "tasks", "plan": "plans"}, in_buckets=("out", "policy", "program_cache")
)
_TASKS = COMMAND.DEFINE_list("tasks", None, "Rows of eval/tasks/.", required=True)
_EPISODES = COMMAND.DEFINE_integer(
    "episodes", None, "Of each task, from its first initial states.", lower_bound=1
)
_STATES = COMMAND.DEFINE_string(
    "init_states",
    None,
    "Of one row: initial states, first:end or first:end:stride; default: all, but of the rows "
    "quickstart and so101 those that their demonstrations do not start from, 30:80 and 50:100. "
    "These two have as many states as are asked for, such as 30:230.",
)
_TASK_IDS = COMMAND.DEFINE_list(
    "task_ids", None, "Of one row: these tasks of its suite instead of the row's own."
)
_OUT = COMMAND.DEFINE_string("out", None, "Folder of receipt, page and films.", required=True)
_POLICIES = COMMAND.DEFINE_multi_string("policy", None, "[NAME=][KIND:]FOLDER.", required=True)
_WORKERS = COMMAND.DEFINE_integer("workers", 2, "Simulators at once.", lower_bound=1)
_SHARD = COMMAND.DEFINE_string(
    "shard", "1/1", "I/N: only this part of the episodes; auto or auto/N: SLURM, Kubernetes."
)
_SEED = COMMAND.DEFINE_integer("seed", 0, "Seed of episodes and noise.", lower_bound=0)
_ACCEPT = COMMAND.DEFINE_bool(
    "accept_renderer", False, "Evaluate although the golden frame differs; noted in the receipt."
)
_RESTART = COMMAND.DEFINE_bool("restart", False, "Forget finished episodes in --out.")
_STOP = COMMAND.DEFINE_bool(
    "stop_early", False, "Compare two policies and stop when it is decided."
)
_FILM = COMMAND.DEFINE_string(
    "film", None, "Name of the policy to film: a success and a failure. The first one if not given."
)

_LEROBOT = COMMAND.DEFINE_string(
    "lerobot_python", sys.executable, "Python with lerobot, for policies of the kind lerobot."
)

_PYTHON = define_simulator_python(COMMAND)
_PROGRAMS = COMMAND.DEFINE_string(
    "program_cache", None, "Folder or bucket of compiled programs; off: keep none."
)

_CONTROL = COMMAND.DEFINE_bool(
    "control", True, "Evaluate the control arm of each disturbed row and suite of LIBERO-PRO too."
)

_OVERRIDES = {
    "executed": COMMAND.DEFINE_integer(
        "executed", None, "Rows of a chunk to carry out, in place of the row's own.", lower_bound=1
    ),
    "step_limit": COMMAND.DEFINE_integer(
        "step_limit", None, "Control steps of an episode, likewise.", lower_bound=1
    ),
    "steps": COMMAND.DEFINE_integer("steps", None, "Denoising steps, likewise.", lower_bound=1),
}

_PLAN = COMMAND.DEFINE_multi_string(
    "plan", [], "[POLICY=]PLAN of the sampler: of one policy, or of all; exact10 if not given."
)
_UNCERTIFIED = COMMAND.DEFINE_bool(
    "uncertified", False, "Use plans that have no certificate of the checkpoint."
)

COMMAND.DEFINE_alias("task", "tasks")
COMMAND.DEFINE_alias("checkpoint", "policy")


def _tasks(entrants: Sequence[Entrant]) -> list[Task]:
    """Returns the rows and their episodes, beside the expert those that it has a plan for.

    Raises:
        ValueError: there is no such row or initial state.
    """
    from scripts.evaluation.entrants import common_tasks, parse_task_ids

    task_ids = parse_task_ids(_TASK_IDS.value)
    tasks = []
    names = list(_TASKS.value)
    if _CONTROL.value:
        names += [task_spec(name).control for name in names if task_spec(name).control]
    for name in dict.fromkeys(names):
        spec = overridden(
            common_tasks(task_spec(name), entrants, task_ids),
            {column: flag.value for column, flag in _OVERRIDES.items()},
        )
        states = evaluation_states(spec)
        if _EPISODES.value:
            states = range(_EPISODES.value)
        elif _STATES.value:
            states = parse_states(_STATES.value)
        tasks.append(Task(spec, episodes(spec, init_states=states, seed=_SEED.value)))
    return tasks


def run(console: Console, out: pathlib.Path) -> dict[str, Any]:
    """Evaluates all policies on the same episodes; writes the receipt and the page into ``out``."""
    from scripts.evaluation.entrants import EXPERT, check_names, load, parse_policy
    from scripts.evaluation.planned import parse_plans
    from xvla_jax.training.provenance import git_state

    entrants = [parse_policy(text) for text in _POLICIES.value]
    tasks = _tasks(entrants)
    out.mkdir(parents=True, exist_ok=True)
    filmed = next((e.name for e in entrants if e.kind != EXPERT), entrants[0].name)
    film = filmed if _FILM.value is None else _FILM.value
    check_names(entrants, film)
    plans = parse_plans(_PLAN.value, [entrant.name for entrant in entrants])
    options = Options(
        num_workers=_WORKERS.value,
        shard=parse_shard(_SHARD.value, os.environ),
        restart=_RESTART.value,
        accept_renderer=_ACCEPT.value,
        alpha=ALPHA if _STOP.value else None,
        film=film,
        config={"seed": _SEED.value, "command": sys.argv[1:]},
        versions=versions(_POLICY_SIDE),
        git=git_state(),
    )
    print_power(console, tasks)
    specs = [task.spec for task in tasks]
    open_pool = pools_in(_PYTHON.value, specs)
    progress = functools.partial(episode_progress, console)
    with contextlib.ExitStack() as until:
        # Checkpoints are loaded and compared before any simulator starts.
        contestants = [
            load(
                entrant,
                specs,
                lerobot_python=_LEROBOT.value,
                until=until,
                steps=_OVERRIDES["steps"].value,
                plan=plans[entrant.name],
                uncertified=_UNCERTIFIED.value,
            )
            for entrant in entrants
        ]
        receipt = Evaluation(contestants, options, out, progress, open_pool).run(tasks)
    write_json(out / RESULTS, receipt)
    write_evaluation_page(out / PAGE, receipt, out)
    return receipt


def main(_: list[str]) -> int:
    """Returns the exit status: 0, 1 after an error, 130 after Ctrl-C."""
    rows = {parts[0] if parts else name for name in _TASKS.value for parts in [split_name(name)]}
    if len(rows) > 1 and (_TASK_IDS.value or _STATES.value):
        raise UsageError(
            "--task_ids and --init_states are for one row in --tasks, disturbed or not"
        )
    from scripts.equivalence.torch_process import TorchReferenceError
    from xvla_jax.compilation.program_cache import keep_programs
    from xvla_jax.errors import XVLAError

    console = Console()
    quiet_libraries()
    # Films are encoded by a child process, which only executes ffmpeg.
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
    out = files.place_of(_OUT.value, flag="--out")
    try:
        console.print(keep_programs(_PROGRAMS.value), markup=False, highlight=False, soft_wrap=True)
        with held(out, flag="--out", needed=NEEDED) as folder:
            receipt = run(console, folder.local)
            folder.save()
        print_tables(console, receipt)
    except KeyboardInterrupt:
        console.print("stopped; the same command resumes with the episodes that are left.")
        return STOPPED
    except (
        RemoteError,
        TorchReferenceError,
        XVLAError,
        WorkerError,
        SimulatorSetupError,
        GoldenFrameError,
        JournalError,
        ValueError,
    ) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    console.print(f"receipt: {out / RESULTS}\npage: {out / PAGE}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
