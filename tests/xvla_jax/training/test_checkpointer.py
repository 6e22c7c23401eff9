"""Checkpoints: resumed bit for bit, on any mesh, complete or absent."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import shutil
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

import xvla_jax
from configs import models
from tests.xvla_jax import tiny
from xvla_jax.checkpoints.run_folder import CHECKPOINTS, find_step
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract
from xvla_jax.errors import CheckpointError
from xvla_jax.models.xvla import XVLA
from xvla_jax.pretrained import Pretrained, load_checkpoint, model_item
from xvla_jax.training.checkpointer import Checkpointer, LowestError, RunItems
from xvla_jax.training.groups import MODES, GroupOptions, join, split
from xvla_jax.training.state import TrainState, abstract_state

_CONTRACT = Contract(3, "ee6d", "contiguous", 20.0, ("agentview", "wrist"), "commanded")
_BUFFER = "vlm.language_model.final_logits_bias"
_BUFFERS = {_BUFFER: np.array([[1.5, -2.0]], ml_dtypes.bfloat16)}
_FILES = {"LICENSE": b"free\n", "tokenizer.json": bytes(range(256))}
_BASE = Pretrained(tiny.CONFIG, {}, None, {}, _BUFFERS, "bfloat16", _FILES)
_MODEL_ITEM = model_item(tiny.CONFIG, tiny.PROCESSOR, {3: _CONTRACT}, source=_BASE)
_POSITION = {"step": 2, "stream": {"seed": 0}}
_ITEMS = RunItems(_MODEL_ITEM, {"seed": 0, "optimizer": {"betas": (0.9, 0.95)}}, {"git": "abc"})
_NOTHING = RunItems({}, {}, {})
_HEADS = MODES["prompts_and_heads"](GroupOptions(learning_coef=1.0, last_layers=1, depth=2))


def _open(workdir: Path) -> Checkpointer:
    return Checkpointer(workdir, keep=2, save_interval=4)


def _save(workdir: Path, step: int, state: TrainState) -> None:
    checkpointer = _open(workdir)
    assert checkpointer.save(step, state, position=lambda: _POSITION, items=_ITEMS, force=True)
    checkpointer.close()


def _restore(workdir: Path, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
    checkpointer = _open(workdir)
    step = checkpointer.latest_step()
    assert step is not None
    restored = checkpointer.restore(abstract, step=step)
    checkpointer.close()
    return restored


@dataclasses.dataclass(frozen=True)
class _Run:
    workdir: Path  # holds step 2 alone
    at_two: TrainState
    at_four: TrainState


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> _Run:
    """Four steps straight, the second one saved."""
    workdir = tmp_path_factory.mktemp("run")
    state = tiny.state()
    for seed in range(2):
        state, _ = tiny.step(state, tiny.batch(seed))
    _save(workdir, 2, state)
    at_two = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
    for seed in (2, 3):
        state, _ = tiny.step(state, tiny.batch(seed))
    return _Run(workdir, at_two, jax.device_get(state))


@pytest.fixture
def copied(run: _Run, tmp_path: Path) -> Path:
    """A copy of the workdir that a test may break."""
    return Path(shutil.copytree(run.workdir, tmp_path / "copy"))


def test_a_resumed_run_goes_on_bit_for_bit(run: _Run) -> None:
    state, position = _restore(run.workdir, tiny.abstract())
    assert position == _POSITION
    assert int(state.step) == 2
    assert tiny.equal(state, run.at_two)
    for seed in (2, 3):
        state, _ = tiny.step(state, tiny.batch(seed))
    assert tiny.equal(state, run.at_four)
    assert not tiny.equal(run.at_two.params, run.at_four.params)


def test_another_mesh_gets_the_same_state(run: _Run) -> None:
    abstract = tiny.abstract(2, 4)
    state, _ = _restore(run.workdir, abstract)
    assert tiny.equal(state, run.at_two)
    table = state.params["vlm"]["text_encoder"]["token_embedding"]
    sharding = abstract.params["vlm"]["text_encoder"]["token_embedding"].sharding
    assert table.sharding.is_equivalent_to(sharding, 2)
    assert {s.data.shape for s in table.addressable_shards} == {(51289, 4)}


@pytest.mark.slow
def test_a_state_goes_from_mesh_to_mesh_unchanged(run: _Run, tmp_path: Path) -> None:
    state, _ = _restore(run.workdir, tiny.abstract(2, 4))
    _save(tmp_path, 2, state)
    again, _ = _restore(tmp_path, tiny.abstract(8, 1))
    assert tiny.equal(again, run.at_two)
    table = again.params["vlm"]["text_encoder"]["token_embedding"]
    assert {s.data.shape for s in table.addressable_shards} == {(51289, 16)}


def test_a_checkpoint_says_how_its_run_was_set_and_where_it_comes_from(run: _Run) -> None:
    checkpointer = _open(run.workdir)
    assert checkpointer.read_config(step=2) == {"seed": 0, "optimizer": {"betas": [0.9, 0.95]}}
    checkpointer.close()
    [item] = (run.workdir / CHECKPOINTS / "2" / "provenance").rglob("metadata")
    assert json.loads(item.read_text()) == {"git": "abc"}


def test_a_checkpoint_from_before_configs_were_kept_is_read(copied: Path) -> None:
    for item in ("config", "provenance"):
        shutil.rmtree(copied / CHECKPOINTS / "2" / item)
    checkpointer = _open(copied)
    assert checkpointer.read_config(step=2) is None
    checkpointer.close()
    assert int(_restore(copied, tiny.abstract())[0].step) == 2


def test_a_step_cut_off_while_written_is_not_seen(copied: Path) -> None:
    steps = copied / CHECKPOINTS
    cut = Path(shutil.copytree(steps / "2", steps / "4.orbax-checkpoint-tmp-7"))
    shutil.rmtree(cut / "opt_state")
    checkpointer = _open(copied)
    assert checkpointer.latest_step() == 2
    checkpointer.close()
    step = find_step(copied)
    assert step is not None
    assert step.name == "2"


def test_a_step_with_a_missing_item_is_refused(copied: Path) -> None:
    shutil.rmtree(copied / CHECKPOINTS / "2" / "opt_state")
    with pytest.raises(CheckpointError, match="checkpoints/2"):
        _restore(copied, tiny.abstract())


def test_a_full_disk_is_reported_before_anything_is_written(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30, 2**20))
    before = sorted(p.name for p in (copied / CHECKPOINTS).iterdir())
    checkpointer = _open(copied)
    with pytest.raises(CheckpointError, match=r"0\.00 GiB are free, a checkpoint takes 0\.01 GiB"):
        checkpointer.save(4, tiny.state(), position=dict, items=_NOTHING)
    checkpointer.close()
    assert sorted(p.name for p in (copied / CHECKPOINTS).iterdir()) == before


@pytest.mark.parametrize(
    ("change", "leaf"),
    [
        ({"depth": 3}, "transformer/blocks/attn/proj/bias: found (2, 32), expected (3, 32)"),
        ({"dim_time": 10}, "action_encoder/kernel: found (30, 48, 32), expected (30, 50, 32)"),
        ({"text_layers": 1}, "text_encoder/layers/mlp/fc1/bias: found (2, 64), expected (1, 64)"),
    ],
)
def test_a_state_of_another_model_is_refused(run: _Run, change: dict[str, int], leaf: str) -> None:
    shape = dataclasses.replace(models.TINY, **change)
    config = XVLAConfig.from_dict(models.model_dict(shape, action_mode="ee6d"))
    abstract = abstract_state(dataclasses.replace(tiny.RECIPE, model=XVLA(config)), tiny.mesh(1, 1))
    with pytest.raises(CheckpointError, match="does not fit this model or optimizer") as refusal:
        _restore(run.workdir, abstract)
    assert leaf in str(refusal.value)
    gc.collect()  # a read that Orbax began and never awaited would warn here


def test_moments_of_another_optimizer_are_refused(run: _Run) -> None:
    other = dataclasses.replace(
        tiny.abstract(), opt_state={"mu": jax.ShapeDtypeStruct((3,), float)}
    )
    with pytest.raises(CheckpointError, match=r"opt_state: [^\n]*389 leaves differ:\n  1/count: "):
        _restore(run.workdir, other)


@pytest.mark.parametrize("place", ["", CHECKPOINTS, f"{CHECKPOINTS}/2"])
def test_a_workdir_loads_like_any_checkpoint(run: _Run, place: str) -> None:
    loaded = load_checkpoint(run.workdir / place)
    assert loaded.config == tiny.CONFIG
    assert loaded.processor == tiny.PROCESSOR
    assert loaded.contracts == {3: _CONTRACT}
    np.testing.assert_array_equal(loaded.buffers[_BUFFER], _BUFFERS[_BUFFER])
    assert loaded.buffers[_BUFFER].dtype == ml_dtypes.bfloat16
    assert (loaded.stored_dtype, loaded.files) == ("bfloat16", _FILES)
    assert tiny.equal(loaded.params, run.at_two.params)


def test_the_moving_average_is_what_acts_and_a_resumed_run_has_both(
    run: _Run, tmp_path: Path
) -> None:
    trained, frozen = split(run.at_two.params, _HEADS)
    average = jax.tree.map(lambda leaf: leaf + np.float32(0.5), trained)
    _save(tmp_path, 2, jax.device_put(run.at_two.replace(ema=average)))
    for stored in (False, True):
        loaded = load_checkpoint(tmp_path, stored=stored).params
        loaded = jax.tree.map(np.asarray, loaded)
        assert jax.tree.structure(loaded) == jax.tree.structure(run.at_two.params)
        assert tiny.equal(loaded, join(average, frozen)), "what config.validation measured"
    abstract = tiny.abstract()
    of_heads, _ = split(abstract.params, _HEADS)
    state, _ = _restore(tmp_path, abstract.replace(ema=of_heads))
    assert tiny.equal((state.params, state.ema), (run.at_two.params, average))


def test_an_average_of_other_parameters_is_refused(run: _Run, tmp_path: Path) -> None:
    _save(tmp_path, 2, jax.device_put(run.at_two.replace(ema={"other": np.zeros(3, np.float32)})))
    with pytest.raises(CheckpointError, match=r"other: found \(3,\), expected nothing"):
        load_checkpoint(tmp_path)


def test_parameters_are_read_without_the_optimizer(copied: Path) -> None:
    shutil.rmtree(copied / CHECKPOINTS / "2" / "opt_state")
    config, params = xvla_jax.load_pretrained(copied)
    assert config == tiny.CONFIG
    assert set(params) == {"vlm", "transformer"}


def test_parameters_of_another_model_are_refused(copied: Path) -> None:
    [item] = (copied / CHECKPOINTS / "2" / "model").rglob("metadata")
    item.write_text(item.read_text().replace('"dim_time": 8', '"dim_time": 10'))
    with pytest.raises(CheckpointError, match=r"action_encoder/kernel: found \(30, 48, 32\)"):
        xvla_jax.load_pretrained(copied)


def _small_state() -> TrainState:
    zero, one = jax.numpy.int32(0), jax.numpy.ones(2)
    return TrainState(zero, {"w": one}, {"m": one}, {}, zero)


def test_intervals_and_the_newest_are_kept(tmp_path: Path) -> None:
    checkpointer = _open(tmp_path)
    state = _small_state()
    rest: Any = {"position": dict, "items": _NOTHING}
    saved = [step for step in range(1, 8) if checkpointer.save(step, state, **rest)]
    assert checkpointer.save(7, state, **rest, force=True)
    assert not checkpointer.save(7, state, **rest, force=True), "it is there"
    checkpointer.close()
    assert {2, 4, 6} <= set(saved)
    assert sorted(p.name for p in (tmp_path / CHECKPOINTS).iterdir()) == ["6", "7"]


def test_some_steps_are_kept_for_good(tmp_path: Path) -> None:
    checkpointer = Checkpointer(tmp_path, keep=1, save_interval=2, keep_every=3)
    for step in range(1, 9):
        checkpointer.save(step, _small_state(), position=dict, items=_NOTHING)
    checkpointer.close()
    assert sorted(p.name for p in (tmp_path / CHECKPOINTS).iterdir()) == ["3", "6", "8"]


def test_the_step_with_the_lowest_error_outlives_later_ones_and_a_kill(tmp_path: Path) -> None:
    errors = {1: 0.5, 2: 0.1, 3: 0.4, 4: math.nan, 5: 0.1, 6: 0.3}
    for first, measured in ((1, {}), (4, errors)):  # the second process knows them from the log
        lowest = LowestError(measured)
        checkpointer = Checkpointer(tmp_path, keep=1, save_interval=1, kept_too=[lowest])
        for step in range(first, first + 3):
            lowest.add(step, errors[step])
            checkpointer.save(step, _small_state(), position=dict, items=_NOTHING)
        checkpointer.close()
    assert sorted(p.name for p in (tmp_path / CHECKPOINTS).iterdir()) == ["2", "6"]
    assert LowestError(errors)([1, 3, 6]) == {6}
    assert LowestError({})([1, 3]) == set(), "nothing is measured"


def test_only_saves_ask_for_the_position_and_count_as_blocking(tmp_path: Path) -> None:
    checkpointer, asked = _open(tmp_path), []

    def slow_position() -> dict[str, Any]:
        asked.append(checkpointer.blocked_s)
        time.sleep(0.3)
        return {}

    for step in (1, 2, 3):  # 1 because it is the first, 2 because of the interval
        checkpointer.save(step, _small_state(), position=slow_position, items=_NOTHING)
    checkpointer.close()
    assert len(asked) == 2
    assert checkpointer.blocked_s >= 0.6


def test_what_a_killed_run_left_unfinished_is_cleared_away(copied: Path) -> None:
    steps = copied / CHECKPOINTS
    shutil.copytree(steps / "2", steps / "4.orbax-checkpoint-tmp")
    _save(copied, 6, _small_state())  # the old files are removed in the background until then
    assert sorted(path.name for path in steps.iterdir()) == ["2", "6"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keep": 0}, "config.keep is 0"),
        ({"save_interval": 0}, "config.save_every is 0"),
        ({"keep_every": -1}, "config.keep_every is -1"),
    ],
)
def test_numbers_out_of_range_are_errors(
    tmp_path: Path, change: dict[str, int], message: str
) -> None:
    numbers: Any = {"keep": 1, "save_interval": 1} | change
    with pytest.raises(CheckpointError, match=message):
        Checkpointer(tmp_path, **numbers)
