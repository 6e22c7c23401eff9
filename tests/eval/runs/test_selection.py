"""The best checkpoint is chosen on one half of the states and confirmed on the other."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.runs.binomial import success_interval
from eval.runs.selection import NoScoreError, Score, best_step, halves, score_of
from eval.tasks.table import TASKS, evaluation_states, parse_states, states_text
from tests.eval.evaluations import contestant, evaluate


def test_halves_are_every_other_state_and_share_none() -> None:
    choosing, confirming = halves(range(50, 100))
    assert (states_text(choosing), states_text(confirming)) == ("50:100:2", "51:100:2")
    for states in (range(50, 100), range(3, 10), range(0, 9, 3)):
        one, other = halves(states)
        assert not set(one) & set(other)
        assert sorted([*one, *other]) == list(states)
        assert 0 <= len(one) - len(other) <= 1
        assert [parse_states(states_text(half)) for half in (one, other)] == [one, other]
    with pytest.raises(ValueError, match="1 initial states cannot be split: 2 or more"):
        halves(range(50, 51))


def test_a_repeated_official_state_stays_in_its_half() -> None:
    """LIBERO's 20 held-out official states are repeated with a displacement."""
    states = evaluation_states(TASKS["quickstart"])
    official = [{30 + (state - 30) % 20 for state in half} for half in halves(range(30, 80))]
    assert states == range(30, 80)
    assert not official[0] & official[1]


@pytest.mark.parametrize("text", ["50", "50:", "60:50", "50:50", "a:b", "50:60:0", "-1:3"])
def test_other_forms_of_states_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=rf"initial states '{text}'; first:end with first < end"):
        parse_states(text)


def test_a_score_has_its_interval() -> None:
    score = Score(20, 25, 31.5)
    assert (score.rate, score.interval) == (0.8, success_interval(20, 25))
    assert str(score) == "20 of 25 (80%; 60 to 92 %)"


def test_the_highest_rate_is_chosen_and_of_equals_the_last() -> None:
    scores = {200: Score(3, 4, 1.0), 400: Score(6, 8, 1.0), 100: Score(2, 4, 1.0)}
    assert best_step(scores) == 400
    assert best_step({**scores, 300: Score(4, 4, 1.0)}) == 300
    with pytest.raises(ValueError, match="no checkpoint has a score"):
        best_step({})


def test_an_error_of_the_simulator_is_no_score(tmp_path: Path) -> None:
    receipt: Any = evaluate(tmp_path, contestant("step_4", noise=0.0))
    score = score_of(receipt)
    assert (score.successes, score.episodes) == (12, 12)
    broken = copy.deepcopy(receipt)
    records = broken["tasks"]["quickstart"]["policies"]["step_4"]["episodes"]
    records[3]["error"] = "Traceback\nthe bowl fell through the table\n"
    with pytest.raises(NoScoreError, match=r"1 of 12 episodes .* the last: the bowl fell through"):
        score_of(broken)
    del records[3:]
    with pytest.raises(NoScoreError, match="3 of 12 episodes were run"):
        score_of(broken)


def test_the_confirming_half_has_no_winners_curse() -> None:
    """Ten equal checkpoints: the best looks better than it is where it was chosen, only there."""
    rng = np.random.default_rng(0)
    chosen, confirmed = [], []
    for _ in range(400):
        successes = rng.binomial(25, 0.5, size=(2, 10))
        step = best_step({k: Score(int(n), 25, 0.0) for k, n in enumerate(successes[0])})
        chosen.append(successes[0, step] / 25)
        confirmed.append(successes[1, step] / 25)
    error = np.std(confirmed) / np.sqrt(len(confirmed))
    assert np.mean(chosen) > 0.6
    assert abs(np.mean(confirmed) - 0.5) < 3 * error
