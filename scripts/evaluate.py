"""Evaluates policies in closed loop: held-out initial states, several simulators, one batched call.

python -m scripts.evaluate --task=quickstart --out=FOLDER --policy=trained=CHECKPOINT \
    --policy=expert=expert: [--workers=2] [--init_states=30:50]

A policy is NAME=KIND:FOLDER. Kinds: none (a checkpoint of any layout), `untrained` (its shape with
random weights), `blind` (the checkpoint with black images), `expert` (scripted, no folder). Beside
the expert, all are evaluated on the tasks that it has a plan for (eval/plans.py).
"""

from __future__ import annotations

import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from rich.console import Console

from eval.receipt import receipt, write_json
from eval.rollout import EpisodeResult, expert_rollout, film, rollout, simulator_pool
from eval.tasks import HELD_OUT_STATES, TASKS, TaskSpec, episodes, task_spec
from eval.video import encode_mp4
from eval.workers import WorkerError, WorkerPool, run_jobs
from scripts.entrants import EXPERT, check_names, common_tasks, load, parse_policy
from scripts.logs import quiet_libraries
from scripts.progress import episode_progress
from scripts.success_table import RESULTS, print_table
from xvla_jax.errors import XVLAError

_FILM_EVERY = 2  # control steps between two frames

_TASK = flags.DEFINE_enum("task", None, sorted(TASKS), "Row of eval/tasks.py.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of results.json and films.", required=True)
_POLICIES = flags.DEFINE_multi_string("policy", None, "NAME=[KIND:]FOLDER.", required=True)
_WORKERS = flags.DEFINE_integer("workers", 2, "Simulators at once.", lower_bound=1)
_STATES = flags.DEFINE_string(
    "init_states",
    f"{HELD_OUT_STATES[0]}:{HELD_OUT_STATES[-1] + 1}",
    "Official initial states, first:end.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of episodes and noise.", lower_bound=0)
_FILM = flags.DEFINE_string("film", "", "Name of the policy to film: a success and a failure.")


def run(console: Console) -> dict[str, Any]:
    """Evaluates all policies on the same episodes and writes the receipt."""
    spec, out = task_spec(_TASK.value), pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    first, _, end = _STATES.value.partition(":")
    entrants = [parse_policy(text) for text in _POLICIES.value]
    spec = common_tasks(spec, entrants)
    todo = episodes(spec, init_states=range(int(first), int(end)), seed=_SEED.value)
    check_names(entrants, _FILM.value)
    # Checkpoints are loaded and compared before any simulator starts.
    policies = {e.name: load(e, spec) for e in entrants if e.kind != EXPERT}
    results: dict[str, list[EpisodeResult]] = {}
    with simulator_pool(spec, _WORKERS.value) as pool:
        for entrant in entrants:
            with episode_progress(console, entrant.name, len(todo)) as show:
                if entrant.kind == EXPERT:
                    results[entrant.name] = expert_rollout(todo, pool=pool, on_progress=show)
                else:
                    policy = policies[entrant.name]
                    results[entrant.name] = rollout(policy, spec, todo, pool=pool, on_progress=show)
        ((_, described),) = run_jobs(pool, [("describe", (spec.task_ids[0],))])
        if _FILM.value:
            _save_films(results[_FILM.value], pool, spec, out)
    record = receipt(
        spec,
        results,
        instruction=described["instruction"],
        renderer=described["renderer"],
        num_workers=_WORKERS.value,
        seed=_SEED.value,
    )
    write_json(out / RESULTS, record)
    return record


def _save_films(
    results: Sequence[EpisodeResult], pool: WorkerPool, spec: TaskSpec, out: pathlib.Path
) -> None:
    """success.mp4 and failure.mp4 in real time, of the first of each; none where there is none."""
    for outcome, name in ((True, "success"), (False, "failure")):
        path = out / f"{name}.mp4"
        path.unlink(missing_ok=True)
        chosen = next((r for r in results if r.success is outcome and r.error is None), None)
        frames = None if chosen is None else film(chosen, pool=pool, every=_FILM_EVERY)
        if frames is not None:
            path.write_bytes(encode_mp4(frames, fps=int(spec.control_hz // _FILM_EVERY)))


def main(argv: list[str]) -> int:
    """Returns the exit status: 0, 1 after an error, 130 after Ctrl-C."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    console = Console()
    quiet_libraries()
    # Films are encoded by a child process, which only executes ffmpeg.
    warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
    try:
        print_table(console, run(console))
    except KeyboardInterrupt:
        console.print("stopped; nothing was written. The same command starts again.")
        return 130
    except (XVLAError, WorkerError, ValueError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    console.print(f"receipt: {pathlib.Path(_OUT.value) / RESULTS}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(app.run(main))
