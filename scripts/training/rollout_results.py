"""Results of rollouts beside a training: what its workdir holds, as rows of a table and as a page.

``W/rollouts/STEP/choice`` and ``.../confirmation`` are folders as scripts.evaluate writes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from eval.files import FileError
from eval.pages.quickstart import Curve, Report, write_report
from eval.runs.receipt import RESULTS, read_receipt
from eval.runs.selection import NoScoreError, Score, best_step, score_of
from xvla_jax.checkpoints.run_folder import CHECKPOINTS
from xvla_jax.training.telemetry import duration, read_metrics

FOLDER: Final = "rollouts"  # in the workdir
CHOICE: Final[str] = "choice"  # half of the states
CONFIRMATION: Final[str] = "confirmation"  # the other
PAGE: Final = "report.html"

NAMES: Final = {CHOICE: "rollouts/success", CONFIRMATION: "rollouts/confirmed"}  # of metrics
SHARE: Final = "rollouts/share"  # of the steps since the last line, those beside an evaluation
SKIPPED, FAILED = "rollouts/skipped", "rollouts/failed"  # 1 at the steps that are


def folder_of(workdir: pathlib.Path, step: int, half: str) -> pathlib.Path:
    """Returns the folder of an evaluation."""
    return workdir / FOLDER / str(step) / half


@dataclasses.dataclass(frozen=True)
class RolloutResults:
    """Receipts and scores of a run by step, for each half of the states.

    Attributes:
        receipts: half -> step -> receipt, of those with a score.
        scores: likewise.
    """

    receipts: Mapping[str, Mapping[int, Mapping[str, Any]]]
    scores: Mapping[str, Mapping[int, Score]]

    @property
    def chosen(self) -> int:
        """Step with the highest success on the choosing half."""
        return best_step(self.scores[CHOICE])


def read_results(workdir: pathlib.Path) -> RolloutResults:
    """Reads all receipts of a run; one that is damaged or without a score is left out."""
    receipts: dict[str, dict[int, Any]] = {CHOICE: {}, CONFIRMATION: {}}
    scores: dict[str, dict[int, Score]] = {CHOICE: {}, CONFIRMATION: {}}
    folders = [folder for folder in (workdir / FOLDER).glob("*") if folder.name.isdigit()]
    for folder in sorted(folders, key=lambda folder: int(folder.name)):
        for half in receipts:
            if not (folder / half / RESULTS).is_file():
                continue
            with contextlib.suppress(FileError, NoScoreError):
                receipt = read_receipt(folder / half)
                scores[half][int(folder.name)] = score_of(receipt)
                receipts[half][int(folder.name)] = receipt
    return RolloutResults(receipts, scores)


def result_rows(
    workdir: pathlib.Path, results: RolloutResults, lines: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Returns rows for the table of a run; none where no checkpoint has a score.

    Args:
        workdir: of the run.
        results: of its rollouts.
        lines: of its metrics, one a step.
    """
    scores = results.scores[CHOICE]
    missing = {
        title: sum(name in line and line["step"] not in scores for line in lines)
        for title, name in (("skipped", SKIPPED), ("without a score", FAILED))
    }
    counts = ", ".join(f"{count} {title}" for title, count in missing.items())
    rows = {"checkpoints evaluated": f"{len(scores)}, {counts}"}
    if not scores:
        return rows if any(missing.values()) else {}
    times = [line.get(f"{name}/seconds", 0.0) for line in lines for name in NAMES.values()]
    confirmed = results.scores[CONFIRMATION].get(results.chosen)
    rows |= {
        "time of evaluations": duration(sum(times)),
        **_cost(lines),
        "chosen checkpoint": f"{CHECKPOINTS}/{results.chosen}, the best of {len(scores)}",
        "success where chosen": str(scores[results.chosen]),
        "success confirmed": "not yet" if confirmed is None else str(confirmed),
    }
    if not (workdir / CHECKPOINTS / str(results.chosen)).is_dir():
        rows["chosen checkpoint"] += " (not there any more)"
    return rows


def _cost(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns the time of a step alone and beside an evaluation; lines between count for none."""
    timed = [line for line in lines if SHARE in line and "step_s" in line]
    kinds = {"step alone, s": 0.0, "step beside an evaluation, s": 1.0}
    times = {
        title: [line["step_s"] for line in timed if line[SHARE] == share]
        for title, share in kinds.items()
    }
    return {title: f"{statistics.median(of):.3g}" for title, of in times.items() if of}


def write_page(workdir: pathlib.Path) -> pathlib.Path | None:
    """Writes the page of a run's rollouts; returns its path, None where none has a score."""
    results, lines = read_results(workdir), read_metrics(workdir)
    if not results.scores[CHOICE]:
        return None
    scores, receipts = results.scores[CHOICE], results.receipts[CHOICE]
    page = workdir / FOLDER / PAGE
    evaluations = [
        (f"step {step}, {half}", receipt)
        for half, of_half in results.receipts.items()
        for step, receipt in of_half.items()
    ]
    (first, *_) = receipts.values()
    report = Report(
        title=f"Rollouts of {workdir.name}",
        lead=_lead(results),
        policies=[(name, _states(receipt), _summary(receipt)) for name, receipt in evaluations],
        facts=[f"{k}: {v}" for k, v in result_rows(workdir, results, lines).items()],
        curves=[Curve("Success on the choosing half, with its interval", curves(scores), "step")],
        stages=[(name, receipt["config"]["seconds"]) for name, receipt in evaluations],
        versions={**first["versions"]["simulator"], "renderer": first["renderer"]},
        commands=[
            f"python -m scripts.evaluate {' '.join(receipt['config']['command'])}"
            for _, receipt in evaluations
        ],
    )
    write_report(page, report)
    return page


def curves(scores: Mapping[int, Score]) -> dict[str, list[tuple[float, float]]]:
    """Returns success and both ends of its interval as points (step, value)."""
    return {
        "success": [(step, score.rate) for step, score in scores.items()],
        "low": [(step, score.interval[0]) for step, score in scores.items()],
        "high": [(step, score.interval[1]) for step, score in scores.items()],
    }


def _lead(results: RolloutResults) -> str:
    scores, chosen = results.scores[CHOICE], results.chosen
    confirmed = results.scores[CONFIRMATION].get(chosen)
    end = (
        "It is not confirmed on the other half yet."
        if confirmed is None
        else f"On the other half, which no choice has seen, it succeeded in {confirmed}."
    )
    among = f"among {len(scores)} checkpoints" if len(scores) > 1 else "as the only checkpoint"
    return (
        f"Step {chosen} was chosen {among} by its success on one half of the states, "
        f"{scores[chosen]}; the best of several looks better there than it is. {end}"
    )


def _states(receipt: Mapping[str, Any]) -> str:
    (name,) = receipt["tasks"]
    flags = dict(word.partition("=")[::2] for word in receipt["config"]["command"])
    return f"{name}, states {flags.get('--init_states', '')}"


def _summary(receipt: Mapping[str, Any]) -> Mapping[str, Any]:
    (task,) = receipt["tasks"].values()
    (entry,) = task["policies"].values()
    return entry["summary"]
