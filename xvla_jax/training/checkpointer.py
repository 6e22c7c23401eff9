"""Checkpoints of a training run, with Orbax: atomic, asynchronous, restorable onto any mesh.

Items of a step: ``params`` (alone enough for serving), ``opt_state``, ``ema`` where kept; and as
JSON ``position`` (step and place in the data stream), ``model`` (config, processor, action
contracts), ``config`` (of the run) and ``provenance``.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, cast

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from xvla_jax import buckets
from xvla_jax.checkpoints.accounting import check_stored_tree
from xvla_jax.checkpoints.folders import disk_errors
from xvla_jax.checkpoints.run_folder import CHECKPOINTS, read_item
from xvla_jax.errors import CheckpointError
from xvla_jax.training.state import TrainState

_DISK_MARGIN: Final = 1.1  # free space asked for, as a multiple of the state's size
_ITEMS: Final = ("params", "opt_state", "ema", "position", "model", "config", "provenance")

KeptToo = Callable[[Sequence[int]], Collection[int]]  # steps that are there -> those to keep


@dataclasses.dataclass(frozen=True)
class RunItems:
    """Content of every checkpoint of a run beside its arrays, as plain JSON values.

    Attributes:
        model: config, processor and action contracts; enough to serve the parameters.
        config: of the run.
        provenance: where weights, data and code come from.
    """

    model: Mapping[str, Any]
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]


class LowestError:
    """The measured step with the lowest error among the checkpoints that are there."""

    def __init__(self, errors: Mapping[int, float]) -> None:
        """Takes the errors of the steps that were measured before."""
        self._errors = dict(errors)

    def add(self, step: int, error: float) -> None:
        """Notes the error of a step, which may have been measured before."""
        self._errors[step] = error

    def __call__(self, steps: Sequence[int]) -> set[int]:
        """Returns the best of ``steps``, of equal ones the first; empty where none has an error."""
        measured = [step for step in steps if math.isfinite(self._errors.get(step, math.nan))]
        return {min(measured, key=self._errors.__getitem__)} if measured else set()


class Checkpointer:
    """Saves and restores the steps of one workdir; every process of a run calls the same.

    A step that was not completely written is ignored.

    Attributes:
        blocked_s: seconds that the run has waited for saves so far.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        keep: int,
        save_interval: int,
        keep_every: int = 0,
        kept_too: Sequence[KeptToo] = (),
        timeout_s: int = 300,
    ) -> None:
        """Opens ``workdir/checkpoints``, and removes what a killed run had not finished.

        Args:
            workdir: seen by all processes, on disks or in a bucket.
            keep: number of newest steps that are kept.
            save_interval: steps that a killed process may lose. A save starts at every half of
                it, and waits for the one before: at any moment the newest complete step is at most
                two saves old.
            keep_every: multiples of this step are kept as well; 0 = none.
            kept_too: each takes the steps that are there, in order, and returns those that it
                needs; asked whenever a step is saved, the same on every process.
            timeout_s: limit for the processes to wait until all have written their part.

        Raises:
            CheckpointError: a number is out of range.
        """
        for name, number, least in (
            ("keep", keep, 1),
            ("save_every", save_interval, 1),
            ("keep_every", keep_every, 0),
        ):
            if number < least:
                raise CheckpointError(f"config.{name} is {number}; it must be {least} or more")
        self._in_bucket = buckets.in_bucket(workdir)
        self.folder = buckets.absolute(buckets.place_of(workdir)) / CHECKPOINTS
        if not self._in_bucket:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.blocked_s = 0.0
        # Orbax writes a step under a temporary name and renames it when it is complete; in a bucket
        # it writes a file into it that says so. Half the interval, because a kill may hit while the
        # newest step is still being written.
        policies: list[managers.PreservationPolicy] = [managers.LatestN(keep)]
        policies += [managers.EveryNSteps(keep_every)] if keep_every else []
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(
                [*policies, *(_Kept(choose) for choose in kept_too)]
            ),
            save_interval_steps=max(1, save_interval // 2),
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(timeout_secs=timeout_s),
            cleanup_tmp_directories=True,
        )
        self._wait = save_interval == 1  # only the present step may be lost, so no save in flight
        # Items are named beforehand: a resumed run may restore some of them before it saves any.
        with disk_errors(self.folder):
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=_ITEMS)

    def latest_step(self) -> int | None:
        """Returns the newest complete step, None for a new run."""
        return self._manager.latest_step()

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        position: Callable[[], Mapping[str, Any]],
        items: RunItems,
        force: bool = False,
    ) -> bool:
        """Starts to save in the background if the interval says so (or ``force``).

        Args:
            step: of the state.
            state: copied before this returns.
            position: returns the position of the run in its data; called only when saving.
            items: the other content of the step.
            force: save whatever the interval.

        Returns:
            True when a save was started.

        Raises:
            CheckpointError: too little disk space is left for the state.
        """
        if step == self.latest_step() or not (force or self._manager.should_save(step)):
            return False
        # The position is gathered over all processes, so it is asked for only when a save is due.
        began = time.monotonic()
        saved = self._save(step, state, position(), items, force=force)
        self.blocked_s += time.monotonic() - began
        return saved

    def _save(
        self,
        step: int,
        state: TrainState,
        position: Mapping[str, Any],
        run: RunItems,
        *,
        force: bool,
    ) -> bool:
        # Before anything is written: a full disk in the background would end the run much later.
        self._check_disk(state)
        items: dict[str, Any] = {
            name: ocp.args.StandardSave(tree) for name, tree in _trees(state).items()
        }
        # Skipped steps are counted over the run, so they are part of its position.
        items["position"] = ocp.args.JsonSave({**position, "skipped": int(state.skipped)})
        for field in dataclasses.fields(run):
            items[field.name] = ocp.args.JsonSave(dict(getattr(run, field.name)))
        with disk_errors(self.folder):
            saved = self._manager.save(step, args=ocp.args.Composite(**items), force=force)
            if self._wait:
                self._manager.wait_until_finished()
        return saved

    def restore(self, abstract: TrainState, *, step: int) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state of ``step`` on the mesh of ``abstract``, and its position.

        Raises:
            CheckpointError: the step cannot be read, or belongs to another model.
        """
        trees = _trees(abstract)
        items: dict[str, Any] = {
            name: ocp.args.StandardRestore(tree) for name, tree in trees.items()
        }
        arguments = ocp.args.Composite(**items, position=ocp.args.JsonRestore())
        try:
            # First, because Orbax names one leaf only, and does not wait for the other reads.
            for name, tree in trees.items():
                check_stored_tree(self.folder / str(step) / name, tree)
            restored = cast(ocp.args.Composite, self._manager.restore(step, args=arguments))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise CheckpointError(
                f"{self.folder / str(step)} does not fit this model or optimizer: {error}\n"
                "Use another --workdir, or the config that the run was started with."
            ) from error
        # On the mesh like the rest: elsewhere they would make the next step compile again.
        position = dict(restored.position)
        count, skipped = (
            jax.device_put(jnp.asarray(number, jnp.int32), abstract.step.sharding)
            for number in (step, position.pop("skipped"))
        )
        ema = restored.ema if abstract.ema else {}
        state = TrainState(count, restored.params, restored.opt_state, ema, skipped)
        return state, position

    def read_config(self, *, step: int) -> dict[str, Any] | None:
        """Returns the config of the run that saved a step; None in old checkpoints without it."""
        return read_item(self.folder / str(step), "config")

    def close(self) -> None:
        """Waits for the save under way."""
        with disk_errors(self.folder):
            self._manager.wait_until_finished()
            self._manager.close()

    def _check_disk(self, state: TrainState) -> None:
        if self._in_bucket:
            return
        needed = _DISK_MARGIN * sum(leaf.nbytes for leaf in jax.tree.leaves(_trees(state)))
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise CheckpointError(
                f"{self.folder}: {free / 2**30:.2f} GiB are free, "
                f"a checkpoint takes {needed / 2**30:.2f} GiB; "
                "free some space or choose another --workdir. The last complete checkpoint is kept."
            )


class _Kept(managers.PreservationPolicy):
    """Keeps the steps that a function names."""

    def __init__(self, choose: KeptToo) -> None:
        self._choose = choose

    def should_preserve(
        self,
        checkpoints: Sequence[managers.PolicyCheckpointInfo],
        *,
        context: managers.PreservationContext,  # noqa: ARG002  # empty
    ) -> Sequence[bool]:
        kept = self._choose([checkpoint.step for checkpoint in checkpoints])
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _trees(state: TrainState) -> dict[str, Any]:
    """Returns the items of a state that hold arrays."""
    trees = {"params": state.params, "opt_state": state.opt_state, "ema": state.ema}
    return {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}
