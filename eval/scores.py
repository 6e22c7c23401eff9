"""Scores that a benchmark has beside success, in words: CALVIN's chains, VLABench's progress."""

from __future__ import annotations

from typing import Any, Mapping

from .tasks.spec import CHAIN_LENGTH

_LONGEST_CHAIN = 5


def score_text(row: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Mean and interval of a policy's scores, and the shares of chains; "" where there are none.

    Args:
        row: of the task table, as a receipt has it.
        entry: a policy's part of a receipt.
    """
    found = entry["summary"]["score"]
    if found is None:
        return ""
    low, high = found["bootstrap95"]
    text = f"mean {found['mean']:.2f} {row['score']} (95 % {low:.2f} to {high:.2f})"
    if row["score"] != CHAIN_LENGTH:
        return text
    scores = [episode["score"] for episode in entry["episodes"]]
    shares = [
        f"{100 * sum(score >= n for score in scores) / len(scores):.1f}"
        for n in range(1, _LONGEST_CHAIN + 1)
    ]
    return f"{text}; at least 1 to {_LONGEST_CHAIN}: {' '.join(shares)} %"
