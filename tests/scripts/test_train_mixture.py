"""A mixture of thirty generated sets: trained, killed, and resumed on another number of hosts."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from data.rows.table import dataset
from tests.data.oxe.facts import READ, row_name
from tests.data.oxe.writing import write_set
from tests.scripts.runs import end, start, start_two, wait_for_step
from tests.scripts.test_train_hosts import assert_same, newest_saved
from xvla_jax.training.telemetry import read_metrics

pytestmark = [pytest.mark.rlds, pytest.mark.slow]

SETS, STEPS = 30, 60
FRAMES = 45  # of an episode: windows of rows up to 20 Hz leave samples
NAMES = [name for name in READ if dataset(row_name(name)).index_margin < FRAMES - 4][:SETS]
FLAGS = (
    "--config.data.mixture=" + ",".join(f"{row_name(name)}:1" for name in NAMES),
    "--config.data.weights_per=frames",
    "--config.data.shuffle_per=mixture",
    "--config.data.shuffle_buffer=600",
    "--config.data.lanes=2",
    "--config.data.deal=even",  # the sets have one to three views, which are packed
    "--config.packed_views=auto",
    "--config.batch_size=32",
    f"--config.optimizer.iters={STEPS}",
    "--config.save_every=15",
    "--config.log_every=5",
)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with thirty sets in the feature trees of Open X-Embodiment."""
    root = tmp_path_factory.mktemp("oxe")
    for number, name in enumerate(NAMES):
        write_set(root, name, seed=number, steps=FRAMES)
    return root


def test_a_killed_run_resumes_on_another_number_of_hosts_to_the_bit(
    sets: Path, compiled: Path, tmp_path: Path
) -> None:
    assert len(NAMES) == SETS
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    status, output = end(start(sets, straight, *FLAGS, devices=2, compiled=compiled))
    assert status == 0, output
    assert output.count("per frame") == SETS, "a line of the table for each set"
    assert re.search(r"packed views: \d+ places for a device's 48 slots", output)
    lines = read_metrics(straight)
    assert all(line["packed_overflow"] < 0.1 for line in lines)
    assert 0.0 < np.mean([line["packed_unused"] for line in lines]) < 0.1

    both = start_two(sets, killed, *FLAGS, compiled=compiled)
    wait_for_step(both[0], killed, 25)
    for process in both:
        process.kill()
    assert [end(process)[0] for process in both] == [-signal.SIGKILL] * 2

    status, output = end(start(sets, killed, *FLAGS, devices=2, compiled=compiled))
    assert status == 0, output
    assert "resuming" in output
    assert_same(killed, straight, STEPS)
    assert len(newest_saved(killed)["position"]["cursors"]) == SETS
    _print_losses(straight)


def _print_losses(workdir: Path) -> None:
    """Losses by domain, over the first and the last lines of the log (pytest -s shows them)."""
    lines = read_metrics(workdir)
    losses = sorted({key for line in lines for key in line if key.startswith("loss/")})
    assert len(losses) >= SETS - 2, "some sets share a domain"
    table = Table("loss", "first lines", "last lines")
    for name in ("loss", *losses):
        values = [line[name] for line in lines if name in line]
        table.add_row(name, *(f"{np.mean(some):.4f}" for some in (values[:3], values[-3:])))
    Console(width=100).print(table)
