"""One run of ``scripts.train`` in its workdir: begins or resumes, trains, and reports."""

from __future__ import annotations

import contextlib
import functools
import logging
import pathlib
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
from rich.console import Console

import xvla_jax
from data.stream.position import merge_positions
from scripts import run_summary
from scripts.places.workdir import Workdir
from scripts.restarts.journal import stopped_status
from scripts.terminal import STOPPED, message
from scripts.training.group_table import group_table
from scripts.training.mixture_table import mixture_table
from scripts.training.rollouts import Rollouts, rollout_plan
from scripts.training.run import TrainingRun
from scripts.training.values import idle_groups
from xvla_jax import buckets
from xvla_jax.checkpoints import relabel
from xvla_jax.checkpoints.run_folder import CHECKPOINTS, read_item, read_model
from xvla_jax.compilation.ahead import Ahead
from xvla_jax.compilation.profiling import StepProfile, steps_of
from xvla_jax.errors import ConfigError, TrainingError, XVLAError
from xvla_jax.planning.attention import summary
from xvla_jax.planning.roofline import step_work, write_work
from xvla_jax.pretrained import PEFT, check_same_base, export_adapter
from xvla_jax.training.checkpointer import Checkpointer, LowestError, RunItems
from xvla_jax.training.loop import (
    Companion,
    Placement,
    Reports,
    Saving,
    Schedule,
    SkipWatch,
    run_loop,
)
from xvla_jax.training.multihost import Processes
from xvla_jax.training.provenance import code_version
from xvla_jax.training.resume import (
    check_resumed,
    check_same_domains,
    check_same_model,
    check_same_teacher,
)
from xvla_jax.training.signals import StopSignal
from xvla_jax.training.state import (
    TrainState,
    abstract_state,
    init_state,
    place_base,
    place_teacher,
)
from xvla_jax.training.telemetry import TENSORBOARD, MetricsWriter, open_sinks, read_metrics
from xvla_jax.training.workdir_lock import WorkdirLock


def train(
    config: Any,
    workdir: Workdir,
    processes: Processes,
    fields_set: Collection[str],
    check_signal: Callable[[], None],
) -> int:
    """Trains, and returns the exit status: 0 done, `stopped_status` of SIGTERM, 130 of Ctrl-C.

    The first process holds the workdir; ``fields_set`` are the fields of the config that the
    command line sets, as ``model.depth``; ``check_signal`` raises a signal that came before.
    """
    began = time.monotonic()
    steps_of(config.profile, config.optimizer.iters)  # refused before anything is read
    run = TrainingRun.open(config, fields_set, workdir=workdir.local)
    # Before a checkpoint is opened: processes of different runs would write over one another.
    code = code_version(xvla_jax.__version__)
    _check_same_run(run, code, workdir, processes)
    saving = _saving(run, workdir, processes, code)
    state, position = _begin(run, saving.checkpointer)
    run = run.without_weights()  # the state holds them now; this frees the host's copy
    train_step = _train_step(run, int(state.step), workdir.local, processes)
    if processes.main:
        _print_start(run)
    with (
        run.batches(position) as stream,
        _metrics(workdir.local, config, processes) as writer,
        StopSignal() as stop,
        contextlib.closing(saving.companion),
        contextlib.closing(_profile(config, int(state.step), workdir.local, processes)) as profile,
    ):
        check_signal()  # from here on, a signal stops the loop between two steps
        state = run_loop(
            state,
            train_step,
            stream,
            schedule=Schedule(run.recipe.config.iters, config.log_every),
            placement=Placement(run.mesh, run.model_config, run.present_views),
            saving=saving,
            reports=Reports(
                writer,
                run.watch(int(state.step), began=began),
                SkipWatch(workdir.local, limit=config.max_skipped_steps, process=processes.index),
                run.domains.names,
                profile=profile,
            ),
            stop=stop,
            validation=run.validation,
        )
        saving.checkpointer.close()
        is_complete = int(state.step) >= run.recipe.config.iters
        is_complete = is_complete and saving.companion.finish(writer.write, stop)
    if processes.main:
        summarise(workdir)
    if is_complete:
        _report_end(run, workdir.place, int(state.step), is_main=processes.main)
        return 0
    print(stopped_line(int(state.step)))
    return STOPPED if stop.number == signal.SIGINT else stopped_status()


def summarise(workdir: Workdir) -> None:
    """Prints the table and draws the curves of a run that has logged a step.

    Nothing of them is needed to resume: a disk that cannot hold them changes no end of a run.
    """
    if not read_metrics(workdir.local):
        return
    curves = workdir.local / run_summary.CURVES
    try:
        run_summary.report([workdir.local], curves, Console(), place=workdir.place)
    except OSError as error:
        logging.warning("the summary is not written: %s", message(error))


def stopped_line(step: int) -> str:
    """Returns the last line of a run that was stopped; ``step`` is saved, but for 0."""
    if step:
        return f"stopped at step {step}; the same command resumes from there"
    return "stopped before step 1, so nothing is saved; the same command starts again"


def _print_start(run: TrainingRun) -> None:
    """Prints what is trained on, what is trained, and how views are packed."""
    console, rows = Console(), run.recipe.group_rows()
    console.print(mixture_table(run.sources), group_table(rows))
    if line := idle_groups(rows, run.recipe.config):
        logging.warning("%s", line)
    if run.recipe.lora and (names := run.recipe.lora.unmatched(run.model_config)):
        logging.warning(
            "no module of this model ends in %s (config.lora.modules_to_save)", ", ".join(names)
        )
    if run.packed:
        console.print(str(run.packed), highlight=False, soft_wrap=True)
    if run.recipe.model.attention != "xla":
        line = f"attention: {summary(run.recipe.model, run.processor)}"
        console.print(line, highlight=False, soft_wrap=True)


def _profile(config: Any, done: int, workdir: pathlib.Path, processes: Processes) -> StepProfile:
    """Returns the profile of a run, which its first process alone writes."""
    steps = steps_of(config.profile, config.optimizer.iters) if processes.main else range(0)
    return StepProfile(steps, workdir / TENSORBOARD, done=done)


def _train_step(run: TrainingRun, done: int, workdir: pathlib.Path, processes: Processes) -> Ahead:
    """Returns the train step, which is compiled beside all that follows; the first batches too."""
    ready = functools.partial(_describe_step, run, workdir, processes)
    begin = done < run.recipe.config.iters
    return Ahead(run.lower_step, ready=ready, begin=begin, function=run.train_step)


def _describe_step(
    run: TrainingRun,
    workdir: pathlib.Path,
    processes: Processes,
    step: jax.stages.Compiled,
    line: str,
) -> None:
    """Logs what the train step took to compile, and writes its work for the summary."""
    if processes.main:
        logging.info("train step: %s", line)
        kind = run.mesh.devices.flat[0].device_kind
        try:
            write_work(workdir, step_work(kind, run.mesh.size, run.step_flops, step.as_text))
        except OSError as error:
            logging.warning("the work of the train step is not written: %s", message(error))


def _check_same_run(
    run: TrainingRun, code: Mapping[str, Any], workdir: Workdir, processes: Processes
) -> None:
    """Checks that all processes of the run have one config, code, data and workdir."""
    processes.check_same({"config": run.config.to_dict(), "code": code, "data": run.data_rows})
    if workdir.in_bucket:  # an address means the same bucket on every host
        processes.check_same({"workdir": str(workdir.place)})
    else:
        processes.check_shared(workdir.local)


def _metrics(local: pathlib.Path, config: Any, processes: Processes) -> MetricsWriter:
    """Opens the metrics of a run, which its first process alone writes."""
    return MetricsWriter(*(open_sinks(local, config.to_dict()) if processes.main else ()))


def _saving(
    run: TrainingRun, workdir: Workdir, processes: Processes, code: Mapping[str, Any]
) -> Saving:
    """Opens the checkpoints of a run, and what decides which of them are kept."""
    config = run.config
    plan = rollout_plan(run, processes=processes.count)
    if plan and workdir.in_bucket:
        raise ConfigError(
            f"config.rollouts.task is {config.rollouts.task!r}, and --workdir={workdir.place} is "
            "in a bucket: rollouts beside a training read checkpoints of this machine. Evaluate "
            "them with scripts.evaluate, or mount the bucket"
        )
    rollouts = Rollouts(plan, workdir.local) if plan else None
    lowest = _lowest_error(config, workdir.local, processes) if config.keep_best else None
    checkpointer = Checkpointer(
        workdir.place,
        keep=config.keep,
        save_interval=config.save_every,
        keep_every=config.keep_every,
        kept_too=[*([lowest] if lowest else []), *([rollouts.kept] if rollouts else [])],
        timeout_s=config.distributed.timeout_s,
    )
    return Saving(
        checkpointer,
        RunItems(run.model_item, config.to_dict(), run.provenance(code)),
        functools.partial(_run_position, workdir, processes),
        lowest,
        rollouts or Companion(),
    )


def _lowest_error(config: Any, workdir: pathlib.Path, processes: Processes) -> LowestError:
    """Returns the errors that the run has measured so far."""
    if not config.validation.every:
        raise ConfigError(
            "config.keep_best is True and config.validation.every is 0: the best checkpoint is the "
            "one with the lowest l1 on held-out episodes, which nothing measures"
        )
    # The log of the first process counts, so that all keep the same.
    lines = [line for line in read_metrics(workdir) if "val_l1" in line]
    pairs = [(line["step"], line["val_l1"]) for line in lines]
    pairs, *_ = processes.gather_json(pairs, "reading the validation so far")
    return LowestError(dict(pairs))


def _report_end(run: TrainingRun, workdir: buckets.Place, step: int, *, is_main: bool) -> None:
    iters = run.recipe.config.iters
    checkpoints = buckets.absolute(workdir) / CHECKPOINTS
    beyond = f", {iters} of which were asked for" if step > iters else ""
    print(f"trained {step} steps{beyond}; checkpoints are in {checkpoints}")
    if run.recipe.lora and is_main:
        _export_adapter(run, checkpoints / str(step), workdir / PEFT)


def _export_adapter(run: TrainingRun, checkpoint: buckets.Place, target: buckets.Place) -> None:
    export_adapter(checkpoint, target, overwrite=True)
    print(f"the adapter is in {target}, for {relabel.space_text(run.model_config)}")


def _run_position(
    workdir: Workdir, processes: Processes, position: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the position of the run, from that of each process, when a checkpoint is due."""
    workdir.copy()  # before the checkpoint, so that it has the metrics of all its steps beside it
    return merge_positions(processes.gather_json(position, "saving the place in the data"))


def _begin(
    run: TrainingRun, checkpointer: Checkpointer
) -> tuple[TrainState, dict[str, Any] | None]:
    """Returns the newest state of the workdir and its position in the data, or a fresh one."""
    step = checkpointer.latest_step()
    if step is None:
        params = run.loaded.params if run.loaded else None
        state = init_state(run.recipe, run.mesh, seed=run.config.seed, params=params)
        return _with_teacher(state, run), None
    check_same_base(checkpointer.folder / str(step), run.model_item)
    logging.info("resuming %s at step %d", checkpointer.folder, step)
    saved = checkpointer.read_config(step=step)
    if saved is not None:
        check_resumed(saved, run.config.to_dict())
    item = read_model(checkpointer.folder / str(step))
    check_same_domains(item.get("domains"), run.domains.ids)
    check_same_model(item["config"], run.model_config)
    if run.recipe.distill and run.base:
        origin = read_item(checkpointer.folder / str(step), "provenance") or {}
        check_same_teacher(origin.get("init_from"), run.base, steps=run.recipe.distill.steps)
    state, position = checkpointer.restore(abstract_state(run.recipe, run.mesh), step=step)
    if run.recipe.lora and run.loaded:
        state = place_base(state, run.mesh, run.loaded.params)
    return _with_teacher(state, run), position


def _with_teacher(state: TrainState, run: TrainingRun) -> TrainState:
    """Returns the state with the initial weights as the teacher, where the run has one."""
    return place_teacher(state, run.recipe, run.mesh, run.loaded.params) if run.loaded else state


@contextlib.contextmanager
def held_workdir(
    place: buckets.Place, processes: Processes, *, take_over: bool
) -> Iterator[Workdir]:
    """Yields the workdir of a run, which its first process holds until the block ends.

    A run that ends before it writes anything removes the workdir that it created.
    """
    with contextlib.ExitStack() as stack:
        # The others wait for the first one's answer, so a problem is gathered, not raised at once.
        problem, workdir = None, None
        try:
            if not buckets.in_bucket(place) and not place.exists():
                place.mkdir(parents=True, exist_ok=True)
                stack.callback(_remove_empty, place)
            if processes.main:
                stack.enter_context(WorkdirLock(place, take_over=take_over))
            workdir = stack.enter_context(Workdir(place))
        except (XVLAError, OSError) as error:
            problem = message(error)
        problems = filter(None, processes.gather_json(problem, f"taking {place}"))
        problem = next(problems, None)
        if problem is not None or workdir is None:
            raise TrainingError(problem)
        yield workdir


def _remove_empty(folder: buckets.Place) -> None:
    with contextlib.suppress(OSError):  # it is not empty
        folder.rmdir()
