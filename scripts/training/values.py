"""Numbers that the fields of a config may have, checked before anything is read.

Further on a wrong one would end the run hours later, or change it without a word: a gradient that
is clipped to a norm of -1 climbs, and a parameter without a gradient is divided by an ``eps`` of 0.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from flax.traverse_util import flatten_dict

from xvla_jax.errors import ConfigError
from xvla_jax.training.optimizer import GroupRow, OptimizerConfig

# (regex of a field's full name, what is allowed, also for each number of a tuple). The model's are
# checked by its own class, also where they come from a file.
LIMITS: Final[tuple[tuple[str, str], ...]] = (
    (r"seed", f">= {-(2**63)}"),  # any: a seed of 32 bits is often drawn
    (r"keep_every|max_skipped_steps|real_action_dim", ">= 0"),
    (r"batch_size|accumulate|noise_draws", ">= 1 and <= 1000000"),  # more is allocated for hours
    (r"log_every|save_every|keep", ">= 1"),
    (r"ema_decay|optimizer\.betas", ">= 0 and < 1"),
    (r"data\.(shuffle_buffer|lanes)", ">= 1"),
    (r"data\.(max_bad_episodes|read_limit_s|cache_mb)", ">= 0"),
    # as those of a checkpoint, see xvla_jax/processor.py
    (r"processor\.image_size", ">= 1 and <= 4096"),
    (r"processor\.num_views", ">= 1 and <= 64"),
    (r"processor\.text_length", ">= 2 and <= 16384"),
    (r"optimizer\.iters", ">= 1 and <= 1000000000"),
    (r"optimizer\.(freeze_steps|warmup_steps)", ">= 0 and <= 1000000000"),
    (r"optimizer\.last_layers", ">= 1"),
    (r"optimizer\.learning_rate", "> 0"),
    (r"optimizer\.(learning_coef|weight_decay|max_grad_norm)", ">= 0"),
    (r"optimizer\.min_lr_ratio", ">= 0 and <= 1"),
    (r"optimizer\.eps", ">= 1e-30"),  # less is 0 in float32 on some devices
    (r"lora\.(rank|dropout)|distill\.steps", ">= 0"),
    (r"lora\.alpha", "> 0"),
    (r"rtc\.max_delay", ">= -1"),
    (r"validation\.every", ">= 0"),
    (r"validation\.(episodes|stride)", ">= 1"),
    (r"validation\.steps", ">= 1 and <= 1000"),
    (r"rollouts\.(every|workers)", ">= 1"),
    (r"rollouts\.limit_s|distributed\.process_id", ">= 0"),
    (r"distributed\.(num_processes|timeout_s|heartbeat_s)", ">= 1"),
    (r"mesh\.(data|fsdp)", ">= -1 and != 0"),
)
LENGTHS: Final[Mapping[str, int]] = {"optimizer.betas": 2}  # of the fields that are tuples
CHECKED_ELSEWHERE: Final = ("model",)
_LARGEST: Final = 2**63 - 1  # of an integer
_COMPARISONS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "!=": operator.ne,
}


def check_values(config: Mapping[str, Any]) -> None:
    """Refuses numbers that a run cannot have.

    Args:
        config: as configs/base.py has it, as plain dictionaries.

    Raises:
        ConfigError: names all such fields, their values and what is allowed.
    """
    values = fields_of(config)
    problems = [
        f"config.{field} has {len(values[field])} numbers; {length} are needed"
        for field, length in LENGTHS.items()
        if len(values[field]) != length
    ]
    for field, value in values.items():
        allowed = limit_of(field)
        numbers = value if isinstance(value, tuple | list) else (value,)
        if allowed is not None and not all(_is_allowed(number, allowed) for number in numbers):
            problems.append(f"config.{field} is {value!r}; allowed is {allowed}")
    if problems:
        raise ConfigError("; ".join(problems))


def fields_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a config by field, as ``optimizer.iters``."""
    here = {name: value for name, value in config.items() if name not in CHECKED_ELSEWHERE}
    return flatten_dict(here, sep=".")


def limit_of(field: str) -> str | None:
    """Returns what is allowed for a field; None if no row covers it."""
    return next((allowed for rule, allowed in LIMITS if re.fullmatch(rule, field)), None)


def _is_allowed(value: Any, allowed: str) -> bool:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return False
    if isinstance(value, int) and value > _LARGEST:
        return False
    conditions = (condition.split() for condition in allowed.split(" and "))
    return all(_COMPARISONS[sign](value, float(bound)) for sign, bound in conditions)


def idle_groups(rows: Sequence[GroupRow], optimizer: OptimizerConfig) -> str:
    """Returns a line on groups that no step of a run would change; empty where there are none.

    Args:
        rows: of the run.
        optimizer: of the run.
    """
    trained = [row for row in rows if row.parameters and row.frozen_until is not None]
    idle = [row.name for row in trained if not row.learning_rate]
    if not idle:
        return ""
    return (
        f"{', '.join(idle)} will not change: the learning rate is 0 in all {optimizer.iters} steps "
        f"(config.optimizer.freeze_steps is {optimizer.freeze_steps}, learning_coef "
        f"{optimizer.learning_coef:g})"
    )
