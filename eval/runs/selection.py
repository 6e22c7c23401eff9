"""The best of several checkpoints by closed-loop success, without winner's curse.

The checkpoint with the most successes on some states is partly good and partly lucky there, so its
rate on them is too high on average. States are therefore split into two halves: the checkpoint is
chosen on one and confirmed on the other, which no choice has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping

from .binomial import success_interval


class NoScoreError(RuntimeError):
    """An evaluation that says nothing about the policy; the message says why."""


@dataclass(frozen=True)
class Score:
    """Successes of one checkpoint on one half of the states.

    Attributes:
        successes: episodes that succeeded.
        episodes: all of them.
        seconds: wall time of the evaluation.
    """

    successes: int
    episodes: int
    seconds: float

    @property
    def rate(self) -> float:
        """Share of successes."""
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """Blaker's exact 95 % interval of the rate."""
        return success_interval(self.successes, self.episodes)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.successes} of {self.episodes} ({self.rate:.0%}; "
            f"{100 * low:.0f} to {100 * high:.0f} %)"
        )


def halves(states: range) -> tuple[range, range]:
    """Returns the states to choose on and those to confirm on: every other one.

    Neighbours are apart so that both halves span the table. States that repeat an official one
    (`TaskSpec.held_out`) stay in its half where an even number of official ones is held out.

    Raises:
        ValueError: fewer than two states.
    """
    if len(states) < 2:
        raise ValueError(
            f"{len(states)} initial states cannot be split: 2 or more are needed, one half to "
            "choose a checkpoint on and one to confirm it on"
        )
    return states[0::2], states[1::2]


def score_of(receipt: Mapping[str, Any]) -> Score:
    """Returns the score of a receipt of one policy on one row.

    Raises:
        NoScoreError: an episode ended in an error of the simulator, or none was run.
    """
    (task,) = receipt["tasks"].values()
    (entry,) = task["policies"].values()
    summary, records = entry["summary"], entry["episodes"]
    if len(records) < max(len(task["plan"]), 1):
        raise NoScoreError(f"{len(records)} of {len(task['plan'])} episodes were run")
    errors = [record["error"] for record in records if record["error"] is not None]
    if errors:
        last = errors[-1].strip().splitlines()[-1]
        raise NoScoreError(
            f"{len(errors)} of {len(records)} episodes ended in an error of the simulator, each "
            f"tried twice; the last: {last}"
        )
    return Score(summary["successes"], len(records), receipt["config"]["seconds"])


def best_step(scores: Mapping[int, Score]) -> int:
    """Returns the step with the highest rate; of equal ones the last, which was trained longest.

    Raises:
        ValueError: there is no score.
    """
    if not scores:
        raise ValueError("no checkpoint has a score, so there is none to choose")
    return max(scores, key=lambda step: (scores[step].rate, step))
