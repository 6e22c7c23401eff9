"""Checkpoints of a training run, with Orbax: atomic, asynchronous, restorable onto any mesh.

Items of a step: ``params`` (alone enough for serving), ``opt_state``, ``ema`` where kept; and as
JSON ``position`` (step and place in the data stream), ``model`` (config, processor, action
contracts), ``config`` (of the run) and ``provenance``.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from xvla_jax.checkpoints.accounting import check_stored_tree
from xvla_jax.checkpoints.folders import disk_errors
from xvla_jax.checkpoints.run_folder import CHECKPOINTS, read_item
from xvla_jax.errors import CheckpointError
from xvla_jax.training.state import TrainState

_DISK_MARGIN: Final = 1.1  # free space asked for, as a multiple of the state's size
_ITEMS: Final = ("params", "opt_state", "ema", "position", "model", "config", "provenance")


@dataclasses.dataclass(frozen=True)
class RunItems:
    """What every checkpoint of a run says beside its arrays, as plain JSON values.

    Attributes:
        model: config, processor and action contracts; enough to serve the parameters.
        config: of the whole run.
        provenance: where weights, data and code come from.
    """

    model: Mapping[str, Any]
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]


class Checkpointer:
    """Saves and restores the steps of one workdir; every process of a run calls the same.

    A step that was not written whole is never seen.

    Attributes:
        blocked_s: seconds for which saves have held up the run so far.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        keep: int,
        save_interval: int,
        keep_every: int = 0,
        timeout_s: int = 300,
    ) -> None:
        """Opens ``workdir/checkpoints``, and clears away what a killed run had not finished.

        Args:
            workdir: seen by all processes.
            keep: newest steps that stay.
            save_interval: steps that a killed process may lose. A save starts at every half of
                it, and waits for the one before: whatever the moment, the newest complete step is
                at most two saves old.
            keep_every: multiples of this step stay as well; 0 = none.
            timeout_s: for which processes wait for each other to have written their part.

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
        self.folder = pathlib.Path(workdir).resolve() / CHECKPOINTS
        self.folder.mkdir(parents=True, exist_ok=True)
        self.blocked_s = 0.0
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            keep_period=keep_every or None,
            save_interval_steps=max(1, save_interval // 2),
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(timeout_secs=timeout_s),
            cleanup_tmp_directories=True,
        )
        self._wait = save_interval == 1  # nothing may be lost but the step under way
        with disk_errors(self.folder):
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=_ITEMS)

    def latest_step(self) -> int | None:
        """Newest complete step, None for a new run."""
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
            position: gives the place of the whole run in its data; asked only when saving.
            items: what else the step holds.
            force: save whatever the interval.

        Returns:
            True when a save was started.

        Raises:
            CheckpointError: too little disk space is left for the state.
        """
        if step == self.latest_step() or not (force or self._manager.should_save(step)):
            return False
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
        self._check_disk(state)
        items: dict[str, Any] = {
            name: ocp.args.StandardSave(tree) for name, tree in _trees(state).items()
        }
        items["position"] = ocp.args.JsonSave({**position, "skipped": int(state.skipped)})
        for field in dataclasses.fields(run):
            items[field.name] = ocp.args.JsonSave(dict(getattr(run, field.name)))
        with disk_errors(self.folder):
            saved = self._manager.save(step, args=ocp.args.Composite(**items), force=force)
            if self._wait:
                self._manager.wait_until_finished()
        return saved

    def restore(self, abstract: TrainState, *, step: int) -> tuple[TrainState, dict[str, Any]]:
        """The state of ``step`` on the mesh of ``abstract``, and its position.

        Raises:
            CheckpointError: the step cannot be read, or belongs to another model.
        """
        trees = _trees(abstract)
        items: dict[str, Any] = {
            name: ocp.args.StandardRestore(tree) for name, tree in trees.items()
        }
        arguments = ocp.args.Composite(**items, position=ocp.args.JsonRestore())
        try:
            # First, because Orbax tells of one leaf only, and leaves the others' reads unawaited.
            for name, tree in trees.items():
                check_stored_tree(self.folder / str(step) / name, tree)
            restored = cast(ocp.args.Composite, self._manager.restore(step, args=arguments))
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise CheckpointError(
                f"{self.folder / str(step)} does not fit this model or optimizer: {error}\n"
                "Use another --workdir, or the config that the run was started with."
            ) from error
        # On the mesh like the rest: elsewhere it would make the next step compile once more.
        position = dict(restored.position)
        count, skipped = (
            jax.device_put(jnp.asarray(number, jnp.int32), abstract.step.sharding)
            for number in (step, position.pop("skipped"))
        )
        ema = restored.ema if abstract.ema else {}
        state = TrainState(count, restored.params, restored.opt_state, ema, skipped)
        return state, position

    def read_config(self, *, step: int) -> dict[str, Any] | None:
        """The config of the run that saved a step; None in checkpoints from before it was kept."""
        return read_item(self.folder / str(step), "config")

    def close(self) -> None:
        """Waits for the save under way."""
        with disk_errors(self.folder):
            self._manager.wait_until_finished()
            self._manager.close()

    def _check_disk(self, state: TrainState) -> None:
        wanted = _DISK_MARGIN * sum(leaf.nbytes for leaf in jax.tree.leaves(_trees(state)))
        free = shutil.disk_usage(self.folder).free
        if free < wanted:
            raise CheckpointError(
                f"{self.folder}: {free / 2**30:.2f} GiB are free, "
                f"a checkpoint takes {wanted / 2**30:.2f} GiB; "
                "free some space or choose another --workdir. The last complete checkpoint is kept."
            )


def _trees(state: TrainState) -> dict[str, Any]:
    """The items of a state that hold arrays."""
    trees = {"params": state.params, "opt_state": state.opt_state, "ema": state.ema}
    return {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}
