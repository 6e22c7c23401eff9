"""Distillation: a student of one or two denoising steps takes a teacher's chunks as its target.

The network predicts the clean chunk at every time. The teacher, a frozen copy of the initial
weights, denoises a noise with all steps of its sampler plan; the student sees the same noise at the
times of its own few steps, and its loss compares it with the chunk that the teacher ends at.
Recorded actions are not used, and neither is dropout. The student is an ordinary checkpoint, to be
run with its number of steps.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from xvla_jax import flow
from xvla_jax.actions import action_space
from xvla_jax.batch import CHANNEL_MASK
from xvla_jax.errors import ConfigError
from xvla_jax.models.xvla import XVLA
from xvla_jax.plans import PLANS, SamplerPlan, named_plan

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Distillation:
    """The teacher of a run, and the steps of its student.

    Attributes:
        teacher: the module, with ``unroll``; its parameters are `inference_params`.
        plan: of the teacher's sampler.
        steps: of the student's sampler.
    """

    teacher: XVLA
    plan: SamplerPlan
    steps: int

    @classmethod
    def of(cls, teacher: XVLA, plan: str, steps: int) -> Distillation:
        """Returns the distillation of ``config.distill``, from a model in any form.

        Raises:
            ConfigError: there is no such plan, or the student would take as many steps.
        """
        where = "config.distill.teacher_plan"
        row = named_plan(plan, where)
        if row.form.adaptive:
            fixed = ", ".join(name for name, other in PLANS.items() if not other.form.adaptive)
            raise ConfigError(
                f"{where} is {plan!r}, whose samples stop by themselves; allowed are {fixed}"
            )
        if not 1 <= steps < row.steps:
            raise ConfigError(
                f"config.distill.steps is {steps}; 0 for no distillation, or 1 to "
                f"{row.steps - 1} of the {row.steps} steps of {where}, {plan}"
            )
        return cls(XVLA(teacher.config, dtype=teacher.dtype, unroll=True), row, steps)

    def times(self, t: Array) -> Array:
        """Turns times in [0, 1) into those of the student's steps, 1 to 1 / ``steps``."""
        return (self.steps - jnp.floor(t * self.steps)) / self.steps

    def targets(self, params: Any, batch: Mapping[str, Array], noise: Array) -> Array:
        """Returns the teacher's chunks, of the shape of ``noise``, as targets of a loss.

        Args:
            params: of the teacher.
            batch: as `flow.sample_losses` takes it; its actions are not read.
            noise: ``[B, T, d]``, or ``[B, K, T, d]`` for K chunks of each observation.
        """
        space = action_space(self.teacher.config)
        views = [batch[name] for name in ("pixels", "view_mask", "input_ids")]
        context: Any = self.teacher.apply({"params": params}, *views, method="encode")
        rows = context, batch["proprio"], batch["domain_id"], batch.get(CHANNEL_MASK)
        if noise.ndim > 3:  # [B, ...] -> [B * K, ...]
            rows = jax.tree.map(functools.partial(jnp.repeat, repeats=noise.shape[1], axis=0), rows)
        context, proprio, domain_id, mask = rows
        chunk = flow.sample(
            self.teacher,
            params,
            context,
            proprio,
            domain_id,
            noise=space.pad(noise.reshape(-1, *noise.shape[-2:])),
            steps=self.plan.steps,
            refresh=self.plan.refresh,
            channel_mask=mask,
        )
        target = space.pad(space.as_target(chunk))[..., : noise.shape[-1]]
        return jax.lax.stop_gradient(target.reshape(noise.shape))
