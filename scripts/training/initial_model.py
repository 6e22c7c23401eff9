"""The initial model of a run: its weights, its action space, and the data that fit it."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from data.rows.contracts import actions_of
from data.spec import DatasetSpec
from scripts.training.domains import RunDomains
from xvla_jax.actions import AUTO, JOINTS, ROTATION_LAYOUTS, action_space, misfit
from xvla_jax.checkpoints.fingerprints import params_digest
from xvla_jax.checkpoints.relabel import (
    relabelled,
    relabelled_config,
    space_text,
    trained_for_delay,
)
from xvla_jax.config import ATTENDED, XVLAConfig
from xvla_jax.errors import ConfigError, ContractError
from xvla_jax.models.xvla import XVLA
from xvla_jax.objectives.distillation import Distillation
from xvla_jax.pretrained import Pretrained, load_checkpoint
from xvla_jax.processor import Processor
from xvla_jax.training.resume import MISSING, differences

_POSES_MODE = "ee6d"  # the action space that messages recommend for poses
# Fields of config.model that give the meaning of the head's channels; a run may change them.
_RELABELLING = ("action_mode", "real_action_dim")

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def computing_dtype(config: Any) -> Any:
    """Returns the dtype that the model computes in.

    Raises:
        ConfigError: config.dtype is another.
    """
    if config.dtype not in _DTYPES:
        raise ConfigError(f"config.dtype is {config.dtype!r}; allowed are {', '.join(_DTYPES)}")
    return _DTYPES[config.dtype]


def initial_headers(config: Any, asked: Iterable[str] = ()) -> tuple[XVLAConfig, Pretrained | None]:
    """Returns the model of a run, and the checkpoint to begin with, its weights left on disk.

    Args:
        config: as configs/base.py has it.
        asked: fields that were set on the command line, as ``model.depth``.

    Raises:
        ConfigError: not exactly one of config.init_from and config.from_scratch is set, or the
            checkpoint is not what was asked for.
        CheckpointError: the checkpoint cannot be read.
    """
    if bool(config.init_from) == config.from_scratch:
        raise ConfigError(
            f"config.init_from is {config.init_from!r} and config.from_scratch "
            f"{config.from_scratch}; the initial weights are either those of a checkpoint "
            "(config.init_from=FOLDER) or random (config.from_scratch=True)"
        )
    if config.from_scratch:
        logging.info("initial weights: random (config.from_scratch)")
        return planned_config(config), None
    loaded = load_checkpoint(config.init_from, stored=True)
    _check_asked(config, frozenset(asked), loaded)
    model = relabelled_config(loaded.config, config.action_mode, config.real_action_dim)
    model = trained_for_delay(model, config.rtc.max_delay)
    model = _attending(config, model)
    if config.lora.rank and model.context_attends_to != loaded.config.context_attends_to:
        raise ConfigError(
            f"config.context_attends_to is {config.context_attends_to!r} with config.lora.rank "
            f"{config.lora.rank}, and the base has {loaded.config.context_attends_to!r}; an "
            "adapter is for the attention of its base. Train all weights, or leave the field empty"
        )
    logging.info("initial weights: %s, %s", config.init_from, space_text(loaded.config))
    if model.rtc_max_delay:  # said, as it may be the checkpoint that asks for it
        logging.info("trains for delays of 0 .. %d actions (config.rtc)", model.rtc_max_delay)
    return model, loaded


def planned_config(config: Any) -> XVLAConfig:
    """Returns the model that config describes by model, action_mode, rtc and context_attends_to.

    Without weights.
    """
    return _attending(config, _planned(config))


def _planned(config: Any) -> XVLAConfig:
    model = relabelled_config(
        XVLAConfig.from_dict(config.model.to_dict()),
        config.action_mode,
        config.real_action_dim,
        any_width=config.from_scratch,
    )
    return trained_for_delay(model, config.rtc.max_delay)


def _attending(config: Any, model: XVLAConfig) -> XVLAConfig:
    """Returns the model with the attention that config.context_attends_to names, if it does."""
    chosen = config.context_attends_to
    if chosen not in ("", *ATTENDED):
        raise ConfigError(
            f"config.context_attends_to is {chosen!r}; allowed are {', '.join(ATTENDED)}, and '' "
            "for that of the model"
        )
    return dataclasses.replace(model, context_attends_to=chosen) if chosen else model


def distillation(
    config: Any, stored: Pretrained | None, domains: RunDomains
) -> Distillation | None:
    """Returns the teacher of a run and the steps of its student; None where nothing is distilled.

    Args:
        config: as configs/base.py has it.
        stored: the checkpoint to begin with; None for a plan, whose teacher is config.model.
        domains: of the run.

    Raises:
        ConfigError: see `Distillation.of`; or the teacher has no chunks for it.
    """
    chosen = config.distill
    if not chosen.steps:
        return None
    changes = {
        "from_scratch": "the teacher is the checkpoint of config.init_from",
        "action_mode": "the teacher's chunks are of the action space that it has",
        "real_action_dim": "the teacher's chunks are of the action space that it has",
        "packed_views": "the student runs as it acts, where all view slots run",
        "new_domains": "the teacher has nothing to say of domains that it lacks",
    }
    for field, reason in changes.items():
        if value := getattr(config, field):
            raise ConfigError(
                f"config.distill.steps is {chosen.steps} and config.{field} {value!r}: {reason}; "
                "leave one of them at its default"
            )
    teacher = stored.config if stored else _planned(config)
    if delay := trained_for_delay(teacher, config.rtc.max_delay).rtc_max_delay:
        raise ConfigError(
            f"config.distill.steps is {chosen.steps}, and the model would be trained for delays of "
            f"{delay} actions: a student takes complete chunks; set config.rtc.max_delay=0"
        )
    model = XVLA(domains.of_model(teacher), dtype=computing_dtype(config))
    return Distillation.of(model, chosen.teacher_plan, chosen.steps)


def load_initial(config: Any) -> Pretrained | None:
    """Loads config.init_from with the run's action space; None for random weights."""
    if not config.init_from:
        return None
    loaded = load_checkpoint(config.init_from)
    return relabelled(loaded, config.action_mode, config.real_action_dim)


def identity_of(path: str, loaded: Pretrained) -> dict[str, str]:
    """Returns path and digest of initial weights."""
    return {"path": path, "sha256": params_digest(loaded.params, loaded.config)}


def check_processor(processor: Processor | None, path: str) -> None:
    """Refuses weights whose preprocessing is unknown, or scales units, which training does not."""
    if processor is None:
        raise ConfigError(
            f"config.init_from={path} has no preprocessor_config.json, and no LeRobot config.json "
            "with these values; image size, resizing and text length belong to the weights"
        )
    for name, scaling in (("STATE", processor.state), ("ACTION", processor.action)):
        if scaling:
            raise ConfigError(
                f"config.init_from={path}: LeRobot's normalization_mapping.{name} is "
                f"{scaling.mode}; training takes the robot's units alone, so these weights can be "
                "served and converted, not trained on"
            )


def check_rows(specs: Sequence[DatasetSpec], model: XVLAConfig, *, any_width: bool) -> None:
    """Compares the actions of datasets with the action space of the model.

    Args:
        specs: rows of the opened datasets.
        model: of the run.
        any_width: the head may become wider or narrower, because it has no weights yet.

    Raises:
        ContractError: names the datasets that do not fit, those that do, and what to change.
    """
    space = action_space(model)
    rows = {spec.name: actions_of(spec) for spec in specs}
    problems = {name: misfit(space.mode, space.real_width, **row) for name, row in rows.items()}
    unfit = {name: problem for name, problem in problems.items() if problem}
    if not unfit:
        return
    message = "; ".join(f"dataset {name!r} has {problem}" for name, problem in unfit.items())
    fitting = [repr(name) for name in rows if name not in unfit]
    if fitting:
        message += f". {', '.join(fitting)} fits: a run has one action space, so train them apart"
    name = next(iter(unfit))
    place = next(spec.written_in for spec in specs if spec.name == name)
    remedy = _remedy(rows[name], model, any_width=any_width)
    raise ContractError(
        f"{message}. To train {name!r}, {remedy}correct the actions of its row ({place})"
    )


def _remedy(row: Mapping[str, Any], model: XVLAConfig, *, any_width: bool) -> str:
    """Returns advice: an action space that fits the dataset; empty if there is none."""
    joints = row["rotation_layout"] in ROTATION_LAYOUTS[JOINTS]
    mode, real = (AUTO, row["channels"]) if joints else (_POSES_MODE, 0)
    try:
        space = action_space(relabelled_config(model, mode, real, any_width=any_width))
    except ConfigError:
        width = action_space(model).width
        return f"begin with a checkpoint whose head is for {mode} (this one's is {width} wide), or "
    if misfit(space.mode, space.real_width, **row):
        return ""
    more = f" and config.real_action_dim={real}" if real else ""
    return f"set config.action_mode={mode}{more}, or "


def _check_asked(config: Any, asked: frozenset[str], loaded: Pretrained) -> None:
    """Refuses fields that the user has set and of which the checkpoint has another value."""
    default, model = json.loads(config.model_default), config.model.to_dict()
    changed = {difference.field for difference in differences(default, model)}
    changed |= {field.removeprefix("model.") for field in asked if field.startswith("model.")}
    if config.new_domains:  # then it is compared with what the new names need
        changed.discard("num_domains")
    problems = _contradictions("model", model, loaded.config.to_dict(), changed)
    if loaded.processor is not None:
        processor = config.processor.to_dict()
        named = {field.removeprefix("processor.") for field in asked}
        problems += _contradictions("processor", processor, loaded.processor.to_dict(), named)
    if problems:
        raise ConfigError(
            f"config.init_from is {config.init_from}, and what it holds differs from what was "
            f"asked for: {'; '.join(problems)}. Leave these fields alone, or begin with "
            "config.from_scratch=True"
        )


def _contradictions(
    section: str, asked: Mapping[str, Any], stored: Mapping[str, Any], fields: set[str]
) -> list[str]:
    problems = []
    for field, ours, theirs in differences(asked, stored):
        if field in fields and ours is not MISSING:
            other = f" (config.{field} changes it)" if field in _RELABELLING else ""
            problems.append(
                f"config.{section}.{field} is {ours!r}, the checkpoint has {theirs!r}{other}"
            )
    return problems
