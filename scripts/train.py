"""Trains X-VLA: pretraining, fine-tuning or LoRA, as a config file says.

python -m scripts.train --config=configs/finetune_libero.py --workdir=W [--config.a.b=v]
    [--config.init_from=CHECKPOINT] [--config.data.root=FOLDER] [--restarts=N]

A workdir that holds a checkpoint is resumed, data stream included. Ctrl-C and SIGTERM save and
stop. On several hosts the same command is started on each (docs/multihost.md). With --restarts a
run starts again after a failure, on the hosts that are left (docs/tpu_from_zero.md). X-VLA's own
flags work behind --config=configs/xvla_released.py.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import TYPE_CHECKING

from scripts.terminal import STOPPED, Command, Termination, message, quiet_libraries
from scripts.training.xvla_flags import carried_over

if TYPE_CHECKING:
    from xvla_jax.buckets import Place

_IN_BUCKETS = ("workdir", "config.data.root", "config.init_from", "program_cache")

_COMPILER = "xvla_jax.compilation.ahead"
_EXHAUSTED = "RESOURCE_EXHAUSTED"  # in an error of XLA
_LESS = (
    "config.remat=full and a larger config.accumulate take less for the same batch, a smaller "
    "config.batch_size less still; python -m scripts.plan says what fits"
)

COMMAND = Command(__doc__, in_buckets=_IN_BUCKETS)
_CONFIG = COMMAND.DEFINE_config("config", "Config file; --config.a.b=v changes a field.")
_WORKDIR = COMMAND.DEFINE_string(
    "workdir", None, "Folder of checkpoints and metrics.", required=True
)
_TAKE_OVER = COMMAND.DEFINE_bool(
    "take_over", False, "Take the workdir from a run on another host that is known to be dead."
)
_RESTARTS = COMMAND.DEFINE_integer(
    "restarts", None, "Starts after the first, on the hosts that are left; off without.", 0
)
_REJOIN = COMMAND.DEFINE_float(
    "rejoin_s", 60.0, "Seconds without a sign of life until a restart leaves a host out.", 1.0
)
_PROGRAMS = COMMAND.DEFINE_string(
    "program_cache", None, "Folder or bucket of compiled programs; off: keep none."
)


def main(_: list[str]) -> int:
    """Trains, and prints an error of ours as one line; returns the exit status."""
    try:
        status = _supervise_or_train()
    except SystemExit as end:  # SIGTERM before the first step
        status = int(end.code or 0)
    if _would_wait(status):
        from xvla_jax.checkpoints.run_folder import remove_copies

        remove_copies()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _would_wait(status: int) -> bool:
    """Returns True where the end of the process would wait for threads that nobody needs."""
    if status == 1:  # a save has failed, and Orbax would wait minutes for its rest
        threads = [thread for thread in threading.enumerate() if not thread.daemon]
        return threads != [threading.main_thread()]
    if status and _COMPILER in sys.modules:  # not in a supervisor
        from xvla_jax.compilation.ahead import compiling

        return compiling()  # a signal came before the train step was compiled
    return False


def _supervise_or_train() -> int:
    from scripts.restarts import journal, supervisor
    from scripts.training.values import check_values
    from xvla_jax.buckets import place_of
    from xvla_jax.errors import XVLAError

    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    quiet_libraries()
    try:
        place = place_of(_WORKDIR.value, flag="--workdir")
        check_values(_CONFIG.value.to_dict())
        if _RESTARTS.value is None or journal.TOKEN in os.environ:
            return _train(place)
        limits = supervisor.Limits(_RESTARTS.value, _REJOIN.value)
        return supervisor.supervise(sys.argv, _CONFIG.value, place, limits)
    except KeyboardInterrupt:
        print(_stopped_at_once())
        return STOPPED
    except SystemExit:  # SIGTERM before the loop
        print(_stopped_at_once())
        raise
    except (XVLAError, OSError, ValueError) as error:
        print(f"error: {message(error)}", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:  # of a device it is a RuntimeError of JAX
        if isinstance(error, RuntimeError) and _EXHAUSTED not in str(error):
            raise
        print(f"error: out of memory: {str(error).partition(chr(10))[0]}; {_LESS}", file=sys.stderr)
        return 1


def _stopped_at_once() -> str:
    """Returns the last line of a run that a signal ended outside of its loop."""
    from scripts.restarts.run_files import newest_step
    from xvla_jax.buckets import place_of

    try:
        step = newest_step(place_of(_WORKDIR.value))
    except OSError as error:
        return f"stopped at once; the checkpoints cannot be listed: {message(error)}"
    if step:
        return f"stopped at once; the same command resumes from step {step}, the newest saved"
    return "stopped at once, and nothing is saved; the same command starts again"


def _train(place: Place) -> int:
    """Trains in this process; a supervisor imports nothing of this."""
    import jax

    from data.sources import StoreError
    from scripts.restarts import journal
    from scripts.training.session import held_workdir, train
    from xvla_jax.compilation.program_cache import keep_programs
    from xvla_jax.training.cpu_memory import keep_between_steps, trim_after_compiling
    from xvla_jax.training.multihost import DistributedConfig, start

    journal.follow_supervisor()
    keep_between_steps()
    trim_after_compiling()
    config = _CONFIG.value
    kept = keep_programs(_PROGRAMS.value)
    try:
        # until the loop waits for signals itself, one ends at once
        with Termination() as termination:
            processes = start(DistributedConfig(**config.distributed.to_dict()))
            held = held_workdir(place, processes, take_over=_TAKE_OVER.value)
            with processes, held as workdir:
                if processes.main:
                    logging.info(kept)
                    local = jax.local_device_count()
                    journal.begin(place, processes=processes.count, devices=local)
                asked = COMMAND.fields_set("config")
                return train(config, workdir, processes, asked, termination.check)
    except StoreError as error:  # of the client that reads and writes metadata for Orbax
        print(f"error: {' '.join(error.message.split())}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.argv = carried_over(sys.argv)  # config flags look in sys.argv for what they override
    sys.exit(COMMAND.run(main, sys.argv))
