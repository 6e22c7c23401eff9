"""Recorded frames as a policy sees them, and its actions on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from data.stream.pipeline import Frame
    from data.trajectory import Source
    from xvla_jax.plans import SamplerPlan
    from xvla_jax.policy import Policy

_BATCH = 16  # observations at once


def frames_of(policy: Policy, source: Source, episodes: int) -> Iterator[Frame]:
    """Yields a few frames of each of so many episodes of a source, with the policy's processor."""
    from data.rows.domains import resolve_domains
    from data.stream.pipeline import FRAMES_PER_EPISODE, recorded_frames

    return recorded_frames(
        source,
        count=FRAMES_PER_EPISODE * episodes,
        num_actions=policy.config.num_actions,
        num_views=policy.processor.num_views,
        image_size=policy.processor.image_size,
        tokenize=policy.processor.tokenize,
        fit=policy.processor.training_fit,
        domains=resolve_domains([source.reader.spec], policy.domains),
    )


def observation_of(frame: Frame) -> dict[str, Any]:
    """Returns a frame as the observation that `Policy.act` takes."""
    return {
        "images": list(frame.images),
        "instruction": frame.instruction,
        "proprio": frame.batch["proprio"][0],
        "domain_id": int(frame.batch["domain_id"][0]),
    }


def acted(
    policy: Policy, observations: Sequence[Any], plan: SamplerPlan, *, seed: int = 0
) -> np.ndarray:
    """Returns actions, float32[N, T, D]; an observation's noise is that of ``seed`` + its place."""
    starts = range(0, len(observations), _BATCH)
    batches = [observations[first : first + _BATCH] for first in starts]
    chunks = [
        policy.act(batch, seed=range(seed + first, seed + first + len(batch)), plan=plan)
        for first, batch in zip(starts, batches, strict=True)
    ]
    return np.concatenate(chunks)
