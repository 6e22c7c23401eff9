"""Policies on the same episodes: pairs that each solved, and the test of their difference."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any, Collection, Iterable, Mapping, Sequence

from eval.files import differences

from .receipt import episode_key
from .statistics import ALPHA, mcnemar_exact, paired_difference

# fields of an episode that `episode_rows` keeps
_EXPORTED = (
    *("task_id", "task", "init_state", "seed", "state_hash", "success", "score", "steps"),
    "error",
)


class PairingError(RuntimeError):
    """Results that were not made on the same episodes; the message says what differs."""


@dataclass(frozen=True)
class Comparison:
    """Counts of pairs of episodes.

    An episode in which the simulator crashed counts as failed, as it does in the success rate.

    Attributes:
        both, only_first, only_second, neither: pairs by the policies that solved them.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def pairs(self) -> int:
        """All pairs."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def p_value(self) -> float:
        """P value of McNemar's exact two-sided test, for a number of pairs fixed beforehand."""
        return mcnemar_exact(self.only_first, self.only_second)

    @property
    def difference(self) -> tuple[float, float, float]:
        """Rate of the first policy less that of the second, with its 95 % interval."""
        return paired_difference(self.both, self.only_first, self.only_second, self.neither)


def count_pairs(outcomes: Iterable[tuple[bool, bool]]) -> Comparison:
    """Counts (first solved it, second solved it)."""
    counts = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for first, second in outcomes:
        counts[bool(first), bool(second)] += 1
    return Comparison(*counts.values())


def only_policy(receipt: Mapping[str, Any], name: str) -> str:
    """Returns `name`, or where it is empty the only policy of the receipt.

    Raises:
        PairingError: there is no such policy, or several to choose from.
    """
    names = list(receipt["policies"])
    if name in names:
        return name
    if name or len(names) != 1:
        raise PairingError(f"policy {name!r}: the receipt has {', '.join(names)}; name one of them")
    return names[0]


def compare_runs(
    first: Mapping[str, Any],
    first_policy: str,
    second: Mapping[str, Any],
    second_policy: str,
    *,
    across: Collection[str] = (),
) -> dict[str, Comparison]:
    """Compares two policies on each row of the task table that their receipts share.

    Policies may have their own columns, such as thresholds; scenes must be the same: every pair
    has the same initial state hash.

    Args:
        first: a receipt.
        first_policy: name of the policy in it.
        second: another receipt, or the same.
        second_policy: name of the policy in it.
        across: columns of `eval.tasks.variants.OVERRIDES` in which the sides may differ.

    Raises:
        PairingError: no row in common, other episodes, other initial states, or another column that
            a command changed on one side alone.
    """
    rows = [name for name in first["tasks"] if name in second["tasks"]]
    if not rows:
        raise PairingError(
            f"no task in common: {', '.join(first['tasks'])} and {', '.join(second['tasks'])}"
        )
    for row in rows:
        _refuse_overrides(row, first["tasks"][row]["row"], second["tasks"][row]["row"], across)
    return {
        row: _compare(
            row,
            first["tasks"][row]["policies"][first_policy]["episodes"],
            second["tasks"][row]["policies"][second_policy]["episodes"],
        )
        for row in rows
    }


@dataclass(frozen=True)
class Change:
    """A policy on a changed row, against itself on the row's control arm.

    Attributes:
        row, control, policy: their names.
        counts: pairs of episodes; first: the changed row, second: the control arm.
        apart: pairs that began in different states, where the change keeps the states.
        adjusted: p value after Holm's correction for the number of changes in the receipt.
    """

    row: str
    control: str
    policy: str
    counts: Comparison
    apart: int
    adjusted: float


def against_control(receipt: Mapping[str, Any]) -> list[Change]:
    """Compares each policy on each changed row with itself on the row's control arm.

    Pairs are episodes of the same task and number of initial state. Disturbances that leave the
    state alone begin in the same one; others, and LIBERO-PRO's suites, have states of their own.
    """
    made = []
    for name, task in receipt["tasks"].items():
        control = task["row"]["control"]
        if control not in receipt["tasks"]:
            continue
        keeps = task["row"].get("disturbance", {}).get("same_state", False)
        for policy, entry in task["policies"].items():
            other = receipt["tasks"][control]["policies"][policy]["episodes"]
            beside = {_place(episode): episode for episode in other}
            pairs = [(e, beside[_place(e)]) for e in entry["episodes"] if _place(e) in beside]
            counts = count_pairs((one["success"], two["success"]) for one, two in pairs)
            apart = sum(keeps and _began_apart(*pair) for pair in pairs)
            if pairs:
                made.append(Change(name, control, policy, counts, apart, adjusted=1.0))
    adjusted = holm([change.counts.p_value for change in made])
    return [dataclasses.replace(change, adjusted=p) for change, p in zip(made, adjusted)]


def _place(episode: Mapping[str, Any]) -> tuple[int, int]:
    return episode["task_id"], episode["init_state"]


def total(comparisons: Iterable[Comparison]) -> Comparison:
    """Sum of comparisons, all pairs together."""
    parts = list(comparisons)
    return Comparison(
        sum(part.both for part in parts),
        sum(part.only_first for part in parts),
        sum(part.only_second for part in parts),
        sum(part.neither for part in parts),
    )


@dataclass(frozen=True)
class Pair:
    """Two of several policies, compared on the episodes of all rows they share.

    Attributes:
        first, second: their names.
        counts: pairs of episodes.
        adjusted: p value after Holm's correction for the number of comparisons.
    """

    first: str
    second: str
    counts: Comparison
    adjusted: float

    @property
    def better(self) -> str:
        """The policy that is shown to be better, "" where neither is."""
        if self.adjusted > ALPHA:
            return ""
        return self.first if self.counts.only_first > self.counts.only_second else self.second


def compare_all(
    sides: Mapping[str, tuple[Mapping[str, Any], str]], *, across: Collection[str] = ()
) -> list[Pair]:
    """Compares each of several policies with each other one.

    With k policies there are k (k - 1) / 2 comparisons, and one in twenty of equal policies would
    pass a test at 5 %. Holm's correction (Scandinavian Journal of Statistics 6, 1979, 65-70) keeps
    the probability of any false claim among them at 5 %.

    Args:
        sides: name -> receipt, and name of the policy in it.
        across: as in `compare_runs`.

    Raises:
        PairingError: two of them cannot be paired.
    """
    names = list(itertools.combinations(sides, 2))
    counts = [
        total(compare_runs(*sides[one], *sides[other], across=across).values())
        for one, other in names
    ]
    adjusted = holm([one.p_value for one in counts])
    return [Pair(*pair, count, p) for pair, count, p in zip(names, counts, adjusted)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns Holm's adjusted p values, in the order of the given ones."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def best_policies(names: Iterable[str], pairs: Sequence[Pair]) -> list[str]:
    """Returns the policies that no other one is shown to be better than."""
    beaten = {
        pair.second if pair.better == pair.first else pair.first for pair in pairs if pair.better
    }
    return [name for name in names if name not in beaten]


def episode_rows(name: str, receipt: Mapping[str, Any], policy: str) -> list[dict[str, Any]]:
    """Returns the episodes of a policy as flat rows, which programs for statistics read.

    Args:
        name: of the policy in the rows.
        receipt: of its evaluation.
        policy: its name in the receipt.
    """
    return [
        {
            "policy": name,
            "policy_hash": receipt["policies"][policy]["hash"],
            "row": row,
            "scenario": f"{row}:{episode_key(episode)}",
            **{key: episode[key] for key in _EXPORTED},
        }
        for row, task in receipt["tasks"].items()
        for episode in task["policies"][policy]["episodes"]
    ]


def protocol_differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Returns what differs between two receipts beside the policies: versions, renderer, rows."""
    lines = []
    for part in ("versions", "renderer", "git"):
        lines += differences({part: first[part]}, {part: second[part]})
    for row in first["tasks"]:
        if row in second["tasks"]:
            ours, theirs = (receipt["tasks"][row]["row"] for receipt in (first, second))
            lines += differences({row: ours}, {row: theirs})
    return lines


def _compare(
    row: str, first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> Comparison:
    ours, theirs = ({episode_key(e): e for e in episodes} for episodes in (first, second))
    alone = sorted(set(ours) ^ set(theirs))
    if alone:
        raise PairingError(
            f"{row}: {len(alone)} episodes (task:initial state:seed) of one side only, such as "
            f"{', '.join(alone[:5])}; evaluate both with the same --seed and episodes"
        )
    other = [key for key, episode in ours.items() if _began_apart(episode, theirs[key])]
    if other:
        raise PairingError(
            f"{row}: {len(other)} episodes began in different states, such as "
            f"{', '.join(other[:5])}; the simulators or their versions differ"
        )
    return count_pairs((ours[key]["success"], theirs[key]["success"]) for key in ours)


def _began_apart(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Returns True for episodes that began in different states."""
    hashes = first["state_hash"], second["state_hash"]
    return "" not in hashes and hashes[0] != hashes[1]  # after two crashes there is no state


def _refuse_overrides(
    row: str, first: Mapping[str, Any], second: Mapping[str, Any], across: Collection[str]
) -> None:
    """Refuses to pair rows in which a command changed a column otherwise."""
    ours, theirs = (
        {one["column"]: one["used"] for one in side.get("overrides", ())}
        for side in (first, second)
    )
    for column in {**ours, **theirs}:
        if ours.get(column) != theirs.get(column) and column not in across:
            values = (
                f"--{column}={side[column]}" if column in side else f"no --{column}"
                for side in (ours, theirs)
            )
            raise PairingError(
                f"{row}: evaluated with {' and with '.join(values)}, so policy and protocol differ "
                f"at once; --across={column} compares them all the same"
            )
