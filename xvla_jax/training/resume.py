"""Fields of a config that may change when a run is resumed.

A row for each field of configs/base.py: (regex of its full name, effect of a change). The first
match wins.
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from xvla_jax.checkpoints import lerobot
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import ConfigError

MISSING: Final = "(missing)"  # in a `Difference`, the value of the side that lacks the field

_log = logging.getLogger(__name__)


class Effect(enum.Enum):
    """Effect of a change on the numbers that follow."""

    NONE = "the numbers stay what they would have been, up to rounding"
    OTHER = "the numbers become others from here on"
    REFUSED = "the saved state or its place in the data would not fit"


EFFECTS: Final[tuple[tuple[str, Effect], ...]] = (
    (r"optimizer\.(mode|last_layers)", Effect.REFUSED),  # which parameters have moments
    (r"optimizer\..*", Effect.OTHER),  # rates, their schedule, and its length
    (r"(model|processor)\..*", Effect.REFUSED),
    (r"lora\..*", Effect.REFUSED),  # another adapter
    # another stream of samples
    (r"data\.(mixture|weights_per|shuffle_buffer|shuffle_per|lanes|deal)", Effect.REFUSED),
    (r"(seed|batch_size|batch_size_per)", Effect.REFUSED),  # likewise
    (r"ema_decay", Effect.REFUSED),  # an average begun late or with another memory is no average
    (r"validation\.episodes", Effect.REFUSED),  # others are trained on
    (r"dtype", Effect.OTHER),
    (r"(accumulate|scan_vision)", Effect.OTHER),  # other dropout masks
    (r"noise_draws", Effect.OTHER),  # other noises and times
    (r"distill\..*", Effect.OTHER),  # other targets; the teacher itself is compared
    (r"rtc\.max_delay", Effect.REFUSED),  # checkpoints state it
    (r"(action_mode|real_action_dim)", Effect.REFUSED),  # other losses on other channels
    (r"context_attends_to", Effect.REFUSED),  # another model
    # initial weights are read at the start only; the model and its domains are compared
    (r"(init_from|from_scratch|model_default|new_domains)", Effect.NONE),
    (r"data\.(root|train_metas_path|outside_root)", Effect.NONE),  # what lies there is compared
    (r"data\.(max_bad_episodes|cache_mb|read_limit_s)", Effect.NONE),
    (r"(remat|attention|packed_views|(mesh|distributed|wandb)\..*)", Effect.NONE),
    (r"validation\.(every|stride|steps)", Effect.NONE),  # 0 or not: seen in the data's position
    (r"(log_every|profile|max_skipped_steps|save_every|keep|keep_every|keep_best)", Effect.NONE),
    (r"rollouts\..*", Effect.NONE),  # a process of its own, which reads checkpoints
)

# Advice beside a refusal, by the field; the first match.
ADVICE: Final[tuple[tuple[str, str], ...]] = (
    (
        r"batch_size|batch_size_per",
        "if memory is short, config.accumulate may change: it cuts the same batch into parts",
    ),
    (r"data\.lanes", "on more hosts, keep lanes and batch_size"),
)

# Fields that older runs did not have -> the value with which a run behaves as they did.
_ADDED: Final[Mapping[str, Any]] = {
    "action_mode": "",
    "real_action_dim": 0,
    "new_domains": "",
    "profile": "",
    "data.weights_per": "",
    "data.shuffle_per": "source",
    "data.deal": "independent",
    "packed_views": "",
    "attention": "xla",
    "noise_draws": 1,
    "context_attends_to": "",
    "distill.steps": 0,
    "distill.teacher_plan": "exact10",
    "rtc.max_delay": -1,
}


def effect_of(field: str) -> Effect | None:
    """Returns the effect of a change of a field; None if no row covers it."""
    for pattern, effect in EFFECTS:
        if re.fullmatch(pattern, field):
            return effect
    return None


def check_resumed(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compares the config of a checkpoint with the one that resumes it; logs differences.

    Raises:
        ConfigError: a field differs that must not change within a run; all of them are named.
    """
    refused, advice = [], []
    for field, before, after in differences(saved, now):
        # A run from before the field existed behaved as its neutral value says.
        if before is MISSING and field in _ADDED and after == _ADDED[field]:
            continue
        effect = effect_of(field)
        if effect is Effect.REFUSED:
            refused.append(f"config.{field}: {before!r} saved, {after!r} now")
            advice += [text for pattern, text in ADVICE if re.fullmatch(pattern, field)][:1]
            continue
        meaning = effect.value if effect else "no row of xvla_jax.training.resume.EFFECTS covers it"
        # Changes that alter the numbers are worth a warning, but are allowed.
        level = logging.INFO if effect is Effect.NONE else logging.WARNING
        _log.log(level, "config.%s was %r, is now %r: %s", field, before, after, meaning)
    # All at once, so that a user does not have to start the run once for each field.
    if refused:
        raise ConfigError(
            f"the run in this workdir was started with another config: {'; '.join(refused)}. "
            "Resume with its config, or start in another --workdir, where "
            "--config.init_from=FOLDER takes the weights of this one, without its optimizer and "
            "its place in the data" + "".join(f"; {text}" for text in dict.fromkeys(advice))
        )


def check_same_model(saved: Mapping[str, Any], now: XVLAConfig) -> None:
    """Compares the model of a checkpoint with the one that resumes it.

    Args:
        saved: ``config`` of the step's ``model`` item.
        now: the model of the run.

    Raises:
        ConfigError: a field differs, such as the action space; all of them are named.
    """
    before = lerobot.config_from_dict(saved)
    differing = [
        f"{field} is {after!r} now and was {was!r}"
        for field, was, after in differences(dataclasses.asdict(before), dataclasses.asdict(now))
        if field != "extra"
    ]
    if differing:
        raise ConfigError(
            f"this workdir is of a run with another model: {'; '.join(differing)}. Resume with its "
            "config.init_from and config.action_mode, or start in another --workdir"
        )


def check_same_teacher(
    saved: Mapping[str, str] | None, now: Mapping[str, str], *, steps: int
) -> None:
    """Compares the initial weights of a checkpoint with those that teach the run that resumes it.

    Args:
        saved: ``init_from`` of the step's ``provenance`` item; None for random weights.
        now: of the run.
        steps: of the student.

    Raises:
        ConfigError: the weights are others.
    """
    before = saved or {"path": "", "sha256": "none: random weights"}
    if before["sha256"] != now["sha256"]:
        raise ConfigError(
            f"config.distill.steps is {steps}, and config.init_from is {now['path']} (SHA-256 "
            f"{now['sha256']}); this run began from {before['path']!r} ({before['sha256']}), "
            "which is its teacher. Resume with its config.init_from, or start in another --workdir"
        )


def check_same_domains(saved: Mapping[str, int] | None, now: Mapping[str, int]) -> None:
    """Compares the ids of domains of a checkpoint with those of the run that resumes it.

    Args:
        saved: ``domains`` of the step's ``model`` item; None for a run of a release without names,
            whose ids are in its data position.
        now: of the run.

    Raises:
        ConfigError: an id differs; all of them are named.
    """
    differing = [
        f"{name!r} has id {after} now and {before} in the checkpoint"
        for name, before, after in differences(saved or now, now)
    ]
    if differing:
        raise ConfigError(
            f"this workdir is of a run with other domains: {'; '.join(differing)}. Resume with its "
            "config.data.mixture and config.init_from, or start in another --workdir, where "
            "config.new_domains adds domains by name"
        )


class Difference(NamedTuple):
    """A field, as ``a.b.c``, with its two values; `MISSING` where a side lacks it."""

    field: str
    ours: Any
    theirs: Any


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[Difference]:
    """Returns every field that is not equal on both sides, by name; a tuple equals a list."""
    a, b = dict(_flat(ours, "")), dict(_flat(theirs, ""))
    fields = sorted(set(a) | set(b))
    pairs = (Difference(field, a.get(field, MISSING), b.get(field, MISSING)) for field in fields)
    return [pair for pair in pairs if pair.ours != pair.theirs]


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    # An empty mapping is a value of its own, except at the top.
    if isinstance(value, Mapping) and (value or not path):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        yield path, [dict(_flat(v, "")) if isinstance(v, Mapping) else v for v in value]
    else:
        yield path, value
