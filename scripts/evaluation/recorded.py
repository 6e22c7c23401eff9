"""Recorded frames as a policy sees them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data.stream.pipeline import Frame
    from data.trajectory import Source
    from xvla_jax.policy import Policy


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
