"""Measures success and seams against latency, with a clock that runs while the policy computes.

python -m scripts.latency_curve --task=quickstart --policy=NAME=FOLDER --out=FOLDER \
    [--latencies=0,2,4,8,12] [--strategy=blocking:30 --strategy=inpaint:10] [--init_states=30:50]
    [--plan=exact10 --plan=frozen3:0.3]

A strategy is NAME:HORIZON, actions of a chunk that are carried out before the next query. A plan of
the sampler is NAME or NAME:SHARE: a chunk takes that share of the latency, rounded up to control
steps. Cells that --out holds already are not measured again, and stay in table and figure.
docs/control.md explains the strategies and the table.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from eval.files import Form, differences, fields, mapping, read_json, write_json
from eval.robot.realtime import STRATEGIES, ChunkStream, Timing
from eval.runs.latency import CELL, POSITION, VELOCITY, WorkerWorld, curve, draw_curve, paired
from eval.runs.rollout import query_seed
from eval.simulators.preflight import SimulatorSetupError
from eval.simulators.workers import WorkerError
from eval.tasks.table import TaskSpec, episodes, parse_states, task_contract, task_spec
from scripts.evaluation.simulators import define_simulator_python
from scripts.terminal import STOPPED, Command, quiet_libraries

if TYPE_CHECKING:
    from xvla_jax.plans import SamplerPlan

FILE, FIGURE = "latency.json", "latency.png"
_CELLS = "strategies"  # of the file
_FORM: Form = fields(**{_CELLS: mapping(mapping(CELL, keys="^[0-9]+$"))})
_FILE_WIDTH = 120  # characters of a line where the output is a file
_ARMS = (0, 1)  # of the 20 numbers of EE6D; the mean of an arm that is not there harms nobody


COMMAND = Command(__doc__, rows={"task": "tasks", "plan": "plans"})
_TASK = COMMAND.DEFINE_string("task", None, "Row of eval/tasks/.", required=True)
_POLICY = COMMAND.DEFINE_string("policy", None, "NAME=[KIND:]FOLDER.", required=True)
_OUT = COMMAND.DEFINE_string("out", None, "Folder of latency.json and latency.png.", required=True)
_LATENCIES = COMMAND.DEFINE_list("latencies", ["0", "2", "4", "8", "12"], "Control steps.")
_STRATEGIES = COMMAND.DEFINE_multi_string(
    "strategy",
    ["blocking:30", "switch:10", "ensemble:10", "inpaint:10"],
    f"NAME:HORIZON; names are {', '.join(STRATEGIES)}.",
)
_STATES = COMMAND.DEFINE_string(
    "init_states",
    "30:50",
    "Initial states, first:end or first:end:stride.",
)
_SEED = COMMAND.DEFINE_integer("seed", 0, "Seed of episodes and noise.", lower_bound=0)
_WORKERS = COMMAND.DEFINE_integer("workers", 2, "Simulators at once.", lower_bound=1)
_PLANS = COMMAND.DEFINE_multi_string(
    "plan", ["exact10"], "Of the sampler: NAME, or NAME:SHARE of the latency that it takes."
)
_UNCERTIFIED = COMMAND.DEFINE_bool(
    "uncertified", False, "Use plans that have no certificate of the checkpoint."
)
_RESTART = COMMAND.DEFINE_bool("restart", False, "Forget the cells in --out.")
_PYTHON = define_simulator_python(COMMAND)
COMMAND.DEFINE_alias("tasks", "task")
COMMAND.DEFINE_alias("checkpoint", "policy")


@dataclasses.dataclass(frozen=True)
class TimedPlan:
    """A sampler plan of the command line, and the share of the latency that a chunk takes."""

    plan: SamplerPlan
    share: float

    def latency(self, latency: int) -> int:
        """Returns the control steps that a chunk takes where the axis says ``latency``."""
        return math.ceil(round(self.share * latency, 6))

    def line(self, strategy: str) -> str:
        """Returns the name of a strategy's line; the default plan is not named."""
        from xvla_jax.plans import DEFAULT

        return strategy if self.plan == DEFAULT else f"{strategy}, {self.plan.name}"


def parse_plans(texts: Sequence[str]) -> list[TimedPlan]:
    """Parses NAME or NAME:SHARE.

    Raises:
        ValueError: another form, or a plan that is given twice.
        ConfigError: there is no such plan.
    """
    from xvla_jax.plans import named_plan

    plans: dict[str, TimedPlan] = {}
    for text in texts:
        name, colon, share = text.partition(":")
        form = re.fullmatch(r"\d*\.?\d+", share)
        if name in plans or (colon and not (form and float(share))):
            raise ValueError(
                f"--plan={text}: NAME or NAME:SHARE is expected, each plan once and SHARE above 0, "
                "such as frozen3:0.3"
            )
        plans[name] = TimedPlan(named_plan(name, "--plan"), float(share) if colon else 1.0)
    return list(plans.values())


def run(console: Console) -> dict[str, Any]:
    """Measures every cell that --out lacks, and returns the record of all."""
    spec = task_spec(_TASK.value)
    latencies = [int(text) for text in _LATENCIES.value]
    strategies = list(dict.fromkeys(_STRATEGIES.value))
    for strategy in strategies:  # what is wrong is said before the policy is loaded
        stream_maker(strategy, spec)
    states = parse_states(_STATES.value)
    todo = episodes(spec, init_states=states, seed=_SEED.value)
    plans = parse_plans(_PLANS.value)
    out = pathlib.Path(_OUT.value)
    with contextlib.ExitStack() as opened:
        name, digest, policies = _load(plans, spec, opened)
        header = {
            "task": spec.name,
            "policy": name,
            "policy_hash": digest,
            "control_hz": spec.control_hz,
            "seed": _SEED.value,
            "init_states": [states.start, states.stop, states.step],
        }
        record: dict[str, Any] = {**header, _CELLS: {} if _RESTART.value else measured(out, header)}
        out.mkdir(parents=True, exist_ok=True)
        worlds = [
            opened.enter_context(WorkerWorld(spec, python=_PYTHON.value))
            for _ in range(_WORKERS.value)
        ]
        for plan, strategy in itertools.product(plans, strategies):
            line = plan.line(strategy)
            row = record[_CELLS].setdefault(line, {})
            known = {cell["latency"]: cell for cell in row.values()}
            for latency in latencies:
                due = plan.latency(latency)
                if due not in known:
                    cells = curve(
                        worlds,
                        policies[plan.plan.name],
                        {line: stream_maker(strategy, spec, first_delay=due)},
                        todo,
                        latencies=[due],
                        step_limit=spec.step_limit,
                        seed_of=lambda episode, query: query_seed(episode.seed, query),
                        on_cell=functools.partial(_say, console),
                    )
                    known[due] = {"latency": due, **cells[line][due]}
                row[str(latency)] = known[due]
                write_json(out / FILE, record)
    return record


def _say(console: Console, line: str, latency: int, cell: Mapping[str, Any]) -> None:
    console.print(f"{line}, latency {latency}: {cell['successes']} of {cell['episodes']}")


def _load(
    plans: Sequence[TimedPlan], spec: TaskSpec, until: contextlib.ExitStack
) -> tuple[str, str | None, dict[str, Any]]:
    """Returns the policy's name and hash, and by the name of the plan what acts."""
    from scripts.evaluation.entrants import load, parse_policy

    entrant = parse_policy(_POLICY.value)
    loaded = {
        one.plan.name: load(
            entrant,
            [spec],
            lerobot_python=sys.executable,
            until=until,
            plan=one.plan,
            uncertified=_UNCERTIFIED.value,
        )
        for one in plans
    }
    if any(contestant.policy is None for contestant in loaded.values()):
        raise ValueError("--policy: the expert takes no time to answer; name a checkpoint")
    (digest,) = {contestant.identity["hash"] for contestant in loaded.values()}
    return entrant.name, digest, {name: one.policy for name, one in loaded.items()}


def measured(out: pathlib.Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the cells of the file in a folder: line -> latency -> cell; {} without a file.

    Raises:
        FileError: it is damaged, or older than the seams.
        ValueError: it was measured with another policy, task, seed or states.
    """
    path = out / FILE
    if not path.is_file():
        return {}
    record = read_json(path, _FORM)
    lines = differences({key: record.get(key) for key in header}, header)
    if lines:
        raise ValueError(
            f"{path} is of another measurement ({'; '.join(lines)}); give another --out, or "
            "--restart to forget it"
        )
    return record[_CELLS]


def stream_maker(text: str, spec: TaskSpec, *, first_delay: int = 0) -> Callable[[], ChunkStream]:
    """Returns a maker of streams of NAME:HORIZON on a row of the task table.

    Args:
        text: NAME:HORIZON.
        spec: the row.
        first_delay: delay of the answers, which the stream expects before it has seen one.

    Raises:
        ValueError: another form, an unknown strategy, or a horizon beyond the row's chunk.
    """
    name, _, horizon = text.partition(":")
    executed = spec.client.executed
    if name not in STRATEGIES or not horizon.isdigit() or not 1 <= int(horizon) <= executed:
        raise ValueError(
            f"--strategy={text}: NAME:HORIZON is expected, with NAME one of "
            f"{', '.join(STRATEGIES)} and HORIZON 1 .. {executed}"
        )
    timing = Timing(
        horizon=int(horizon),
        stride=spec.client.stride,
        feedback_channels=spec.client.feedback_channels,
        rotation_layout=spec.client.rotation,
        arms=_ARMS,
        first_delay=first_delay,
    )
    relative = task_contract(spec)["relative_channels"]
    make = functools.partial(
        ChunkStream, STRATEGIES[name], timing, relative_channels=tuple(relative)
    )
    make()  # raises here rather than in the first episode
    return make


def show(console: Console, record: Mapping[str, Any]) -> None:
    """Prints three tables with a line for each strategy and a column for each latency."""
    ms = 1000 / record["control_hz"]
    rows: Mapping[str, Mapping[str, Any]] = record[_CELLS]
    axis = sorted({latency for row in rows.values() for latency in row}, key=int)
    first = next(iter(rows))
    tables: Sequence[tuple[str, Callable[[str, str], str]]] = (
        (
            f"Success on {record['task']} by latency in control steps of {ms:.0f} ms",
            lambda line, at: _rate(rows[line][at]),
        ),
        (
            "Seams: mean jump in position (mm) and in velocity (mm/step)",
            lambda line, at: _jump(rows[line][at]),
        ),
        (
            f"Success less that of {first}, points, pairs of the same state and seed",
            lambda line, at: _less(rows[line], rows[first], at) if line != first else "",
        ),
    )
    for title, text in tables:
        table = Table(title=title, box=box.SIMPLE)
        table.add_column("strategy", no_wrap=True)
        for latency in axis:
            table.add_column(latency, justify="right")
        for line, row in rows.items():
            table.add_row(line, *(text(line, at) if at in row else "" for at in axis))
        console.print(table)


def _rate(cell: Mapping[str, Any]) -> str:
    return f"{cell['rate']:.0%} ({cell['low']:.0%}..{cell['high']:.0%})"


def _jump(cell: Mapping[str, Any]) -> str:
    if cell[POSITION] is None:
        return ""
    return f"{cell[POSITION]['mean']:.1f}, {cell[VELOCITY]['mean']:.1f}"


def _less(row: Mapping[str, Any], other: Mapping[str, Any], latency: str) -> str:
    if latency not in other:
        return ""
    pairs = paired(row[latency], other[latency])
    difference, low, high = (100 * value for value in pairs.difference)
    return f"{difference:+.0f} ({low:+.0f}..{high:+.0f})"


def main(_: list[str]) -> int:
    """Returns the exit status: 0, 1 after an error, 130 after Ctrl-C."""
    from xvla_jax.errors import XVLAError

    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    quiet_libraries()
    try:
        record = run(console)
    except KeyboardInterrupt:
        console.print("stopped; the same command resumes with the cells that are left")
        return STOPPED
    except (XVLAError, WorkerError, SimulatorSetupError, ValueError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    out = pathlib.Path(_OUT.value)
    cells = {
        line: {int(latency): cell for latency, cell in row.items()}
        for line, row in record[_CELLS].items()
    }
    title = f"policy {record['policy']} on task {record['task']}"
    draw_curve(cells, out / FIGURE, title=title)
    show(console, record)
    console.print(f"written to {out}/{FILE} and {FIGURE}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
