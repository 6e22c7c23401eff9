"""The logic of ``benchmarks.adaptation``: its commands and its tables, without a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from absl import app
from PIL import Image

from benchmarks.adaptation import cells, domains, report
from benchmarks.adaptation.__main__ import chosen_cells
from configs import quickstart, so101
from data.rows.domains import resolve_domains
from data.rows.mixtures import mixture
from data.rows.table import dataset
from eval.recording.demonstrations import plan
from eval.tasks.table import evaluation_states, task_spec
from scripts.demo.stages import Stage

_SIZE = cells.Size(base_steps=12, steps=10, batch=4)


def _fields(stage: Stage) -> dict[str, str]:
    """Fields of the config that a stage's flags set."""
    flags = [text for text in stage.arguments if text.startswith("--config.")]
    return dict(flag.removeprefix("--config.").split("=", 1) for flag in flags)


def test_the_flags_of_all_stages_are_fields_of_their_configs() -> None:
    configs = {"configs/so101.py": so101, "configs/quickstart.py": quickstart}
    stages = cells.base_stages("out", _SIZE)
    stages += [s for cell in cells.CELLS.values() for s in cells.cell_stages("out", cell, _SIZE)]
    trained = [stage for stage in stages if stage.arguments[0] == "scripts.train"]
    assert len(trained) == 1 + len(cells.CELLS)
    for stage in trained:
        (file,) = (text[9:] for text in stage.arguments if text.startswith("--config="))
        known: Any = configs[file].get_config()
        for field, value in _fields(stage).items():
            node = known
            for part in field.split("."):
                node = node[part]
            if not isinstance(node, (str, bool)):
                assert type(node)(value) is not None
    names = [stage.name for stage in stages]
    assert len(set(names)) == len(names), "the ledger is by name"


def test_cells_differ_in_the_method_alone() -> None:
    fields = {
        method: _fields(cells.cell_stages("out", cells.Cell(20, method), _SIZE)[0])
        for method in cells.METHODS
    }
    scratch = fields["scratch"]
    assert scratch["data.root"] == "out/data/20"
    assert "init_from" not in scratch
    changed = {
        method: {k: v for k, v in own.items() if scratch.get(k) != v}
        for method, own in fields.items()
    }
    base = {"from_scratch": "False", "init_from": "out/base/train", "action_mode": "auto"}
    first = {"optimizer.freeze_steps": "2"}
    assert changed == {
        "scratch": {},
        "full": base,
        "two_step": base | first,
        "lora": base | first | {"lora.rank": "8"},
        "prompt": base | {"optimizer.mode": "prompts_and_heads"},
        "nearest": base | first | {"init_from": "out/nearest/ready"},
    }


def test_no_demonstration_that_trains_begins_in_a_held_out_state() -> None:
    recorded = domains.RECORDED["robot"]
    spec = task_spec(recorded.task)
    widened = domains.changed_task(recorded)
    states = [
        episode.init_state for episode in plan(widened, num_episodes=recorded.episodes, seed=0)
    ]
    assert states == list(range(60))
    assert not set(states[: domains.TRAINED]) & set(evaluation_states(spec))
    names = [f"episode_{number:05d}.npz" for number in range(recorded.episodes)]
    parts = {
        folder: [n for n in names if Path(n).match(pattern)]
        for folder, pattern in cells.PARTS.items()
    }
    assert {folder: len(files) for folder, files in parts.items()} == {
        "data/10": 10,
        "data/20": 20,
        "data/50": 50,
        cells.HELD_OUT: 10,
    }
    assert not set(parts[cells.HELD_OUT]) & set(parts["data/50"])


def test_the_base_has_three_domains_none_of_which_is_the_new_robots() -> None:
    rows = [dataset(name) for name, _ in mixture(domains.mixture())]
    ids = resolve_domains(rows)
    assert set(ids) == {"libero", "bowls", "table"}
    assert dataset(cells.DATASET).domain_id == cells.NEW_DOMAIN
    assert cells.NEW_DOMAIN not in ids.values()


def test_an_unknown_cell_is_refused() -> None:
    with pytest.raises(app.UsageError, match=re.escape("--cells=20-magic; the cells are 20-")):
        chosen_cells(["20-scratch", "20-magic"])
    assert [cell.name for cell in chosen_cells(["50-lora"])] == ["50-lora"]
    assert len(chosen_cells(None)) == len(cells.CELLS)


def _outcome(name: str, solved: str, l1: float = 0.1) -> report.Outcome:
    """A cell that solved the states with a 1."""
    episodes = [
        {
            "task_id": 0,
            "init_state": state,
            "seed": state,
            "state_hash": f"{state}",
            "success": outcome == "1",
        }
        for state, outcome in enumerate(solved)
    ]
    summary = {"successes": solved.count("1"), "episodes": len(solved)}
    policies = {name: {"summary": summary, "episodes": episodes}}
    return report.Outcome(
        cells.CELLS[name], {"tasks": {"so101": {"row": {}, "policies": policies}}}, l1
    )


def test_methods_are_paired_by_state_and_seeds_are_summed() -> None:
    outcomes = [
        _outcome("20-scratch", "1000"),
        _outcome("20-two_step", "0111"),
        _outcome("20-scratch-1", "0000"),
        _outcome("20-two_step-1", "1111"),
        _outcome("50-two_step", "1111"),  # nothing to compare it with
    ]
    (row,) = report.comparisons(outcomes)
    assert (row["demonstrations"], row["first"], row["second"]) == (20, "two_step", "scratch")
    assert row["seeds"] == 2
    assert [row[k] for k in ("both", "only_first", "only_second", "neither")] == [0, 7, 1, 0]
    assert row["difference"][0] == pytest.approx(0.75)
    assert row["p_value"] == pytest.approx(18 / 256)
    text = report.markdown(outcomes, [row])
    assert "| 20 | two-step | 0 | 3 of 4 | 25 % to 99 % | 0.1000 |" in text
    assert "| 20 | two-step | from scratch | 2 | 7 | 1 | +75 (" in text


def test_the_figure_has_every_method(tmp_path: Path) -> None:
    outcomes = [_outcome(f"{n}-{m}", "1100") for n in (10, 20) for m in ("scratch", "lora")]
    report.draw(outcomes, tmp_path / "a.png")
    report.draw(outcomes[:1], tmp_path / "b.png")
    one, other = (Image.open(tmp_path / name) for name in ("a.png", "b.png"))
    assert one.size == other.size
    assert one.tobytes() != other.tobytes()
