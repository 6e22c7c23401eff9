"""Checkpoints of a LoRA run: the adapter alone, bound to its base."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import golden, tiny
from xvla_jax import pretrained
from xvla_jax.checkpoint_tools import convert_layout
from xvla_jax.checkpoint_tools.compare import take_inventory
from xvla_jax.checkpoints.fingerprints import params_digest
from xvla_jax.config import XVLAConfig
from xvla_jax.errors import CheckpointError
from xvla_jax.lora import Adapter, LoraConfig, init_adapter, load_adapter, merge_adapter
from xvla_jax.processor import Processor
from xvla_jax.training.checkpointer import Checkpointer, RunItems
from xvla_jax.training.state import TrainState

_LORA = LoraConfig(rank=2, alpha=4)


@dataclasses.dataclass(frozen=True)
class _Run:
    base: Path
    workdir: Path
    adapter: Adapter
    params: Any  # of the base
    config: XVLAConfig


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> _Run:
    """A golden model as the base, and step 3 of a run on it."""
    folder, case = tmp_path_factory.mktemp("lora"), golden.load("ee6d")
    base = folder / "base"
    processor = Processor(image_size=64, text_length=11)
    pretrained.save_pretrained(base, case.config, case.params, processor=processor)
    loaded = pretrained.load_checkpoint(base)
    fresh = init_adapter(case.params, case.config, _LORA.peft(), seed=0)
    rng = np.random.default_rng(1)
    tensors = jax.tree.map(
        lambda leaf: leaf + rng.normal(0, 0.05, leaf.shape).astype(np.float32), fresh.tensors
    )
    zero = jnp.int32(0)
    state = TrainState(zero, tensors, {"moments": np.zeros(2)}, {}, zero, base=case.params)
    item = pretrained.model_item(case.config, processor, {}, source=loaded)
    digest = params_digest(loaded.params, loaded.config)
    item["adapter"] = pretrained.adapter_section(_LORA.peft("BASE"), base, digest)
    checkpointer = Checkpointer(folder / "run", keep=1, save_interval=1)
    checkpointer.save(3, state, position=dict, items=RunItems(item, {}, {}), force=True)
    checkpointer.close()
    adapter = dataclasses.replace(fresh, tensors=tensors)
    return _Run(base, folder / "run", adapter, case.params, case.config)


@pytest.fixture
def copied(made: _Run, tmp_path: Path) -> _Run:
    """Copies of base and run that a test may break."""
    base = Path(shutil.copytree(made.base, tmp_path / "base"))
    workdir = Path(shutil.copytree(made.workdir, tmp_path / "run"))
    return dataclasses.replace(made, base=base, workdir=_pointed(workdir, base))


def _item(workdir: Path) -> Path:
    [path] = (workdir / "checkpoints" / "3" / "model").rglob("metadata")
    return path


def _pointed(workdir: Path, base: Path) -> Path:
    """The run with its base at another place."""
    item = json.loads(_item(workdir).read_text())
    item["adapter"]["base"] = str(base)
    _item(workdir).write_text(json.dumps(item))
    return workdir


def test_a_step_holds_the_adapter_alone_and_loads_merged(made: _Run) -> None:
    step = made.workdir / "checkpoints" / "3"
    stored = json.loads((step / "params" / "_METADATA").read_text())["tree_metadata"]
    assert len(stored) == len(jax.tree.leaves(made.adapter.tensors))
    assert tiny.equal(pretrained.read_adapter(step).tensors, made.adapter.tensors)
    expected = merge_adapter(made.params, made.adapter)
    for on_disk in (False, True):
        loaded = pretrained.load_checkpoint(made.workdir, stored=on_disk)
        assert tiny.equal(loaded.params, expected)
        assert loaded.processor == Processor(image_size=64, text_length=11)
    assert not tiny.equal(expected, made.params)
    kernel = expected["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    lazy: Any = loaded.params["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(lazy[1], kernel[1])
    with pytest.raises(CheckpointError, match="an adapter alone; merge it first"):
        take_inventory(made.workdir)


def test_the_adapter_is_written_as_peft_reads_it(made: _Run, tmp_path: Path) -> None:
    done = convert_layout.extract_adapter(made.workdir, tmp_path / "out")
    assert done.target.layout == "peft"
    assert done.target.tensors == 129  # a layer each, where a step stacks them
    again = load_adapter(tmp_path / "out", made.config)
    assert tiny.equal(again.tensors, made.adapter.tensors)
    assert again.peft.base == "BASE"
    assert (again.peft.raw["r"], again.peft.raw["lora_alpha"]) == (2, 4)
    merged, _ = convert_layout.convert_checkpoint(
        made.base, tmp_path / "merged", "hf", adapter=tmp_path / "out"
    )
    assert tiny.equal(merged.params, merge_adapter(made.params, made.adapter))
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        convert_layout.extract_adapter(made.workdir, tmp_path / "out")
    with pytest.raises(CheckpointError, match="no workdir of a LoRA run"):
        convert_layout.extract_adapter(made.base, tmp_path / "other")


def test_a_missing_or_changed_base_is_refused_with_the_way_out(copied: _Run) -> None:
    params = dict(pretrained.load_checkpoint(copied.base).params)
    params["transformer"]["norm"]["bias"][0] += 1e-3
    pretrained.save_pretrained(copied.base, copied.config, params, overwrite=True)
    with pytest.raises(CheckpointError, match=r"SHA-256 .* those there now have .*--layout=peft"):
        pretrained.load_checkpoint(copied.workdir)
    shutil.rmtree(copied.base)
    with pytest.raises(CheckpointError, match=r"base .*base is not here.*--adapter=ADAPTER"):
        pretrained.load_checkpoint(copied.workdir)
    assert convert_layout.extract_adapter(copied.workdir, copied.base).target.tensors


def test_the_digest_is_that_of_the_values_whatever_the_layout(made: _Run, tmp_path: Path) -> None:
    digest = params_digest(made.params, made.config)
    for layout in ("lerobot-native", "orbax"):
        convert_layout.convert_checkpoint(made.base, tmp_path / layout, layout)
        stored = pretrained.load_checkpoint(tmp_path / layout, stored=True)
        assert params_digest(stored.params, stored.config) == digest
    loaded = pretrained.load_checkpoint(_pointed(made.workdir, tmp_path / "orbax"))
    assert tiny.equal(loaded.params, merge_adapter(made.params, made.adapter))
    _pointed(made.workdir, made.base)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({}, None),
        ({"base": "/elsewhere"}, None),  # moved, but the same
        ({"base_sha256": "0"}, r"config\.init_from is .* \(SHA-256 0\), the base was"),
        ({"peft": LoraConfig(rank=2, alpha=8).peft().raw}, "lora_alpha is 8 now and was 4"),
        (None, "holds an adapter, but config.lora asks for none"),
    ],
)
def test_another_adapter_or_base_is_not_gone_on_with(
    made: _Run, section: dict[str, Any] | None, message: str | None
) -> None:
    step = made.workdir / "checkpoints" / "3"
    ours = json.loads(_item(made.workdir).read_text())
    if section is None:
        del ours["adapter"]
    else:
        ours["adapter"] |= section
    if message is None:
        pretrained.check_same_base(step, ours)
        return
    with pytest.raises(CheckpointError, match=message):
        pretrained.check_same_base(step, ours)
