"""Domains of a checkpoint: distinguished, copied, exported and put back bit for bit."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from tests.xvla_jax import golden, tiny
from xvla_jax import pretrained
from xvla_jax.checkpoint_tools import domains
from xvla_jax.checkpoints.hf_folder import Pretrained
from xvla_jax.contract import Contract
from xvla_jax.errors import CheckpointError, ConfigError, ContractError

_CONTRACT = Contract(0, "ee6d", "interleaved", 10.0, ("front", "wrist"), "measured")


def _case(name: str = "ee6d", **contracts: Contract) -> Pretrained:
    """A golden checkpoint whose domain 2 was never trained."""
    case = golden.load(name)
    params = jax.tree.map(np.array, case.params)
    loaded = Pretrained(case.config, params, None, {c.domain_id: c for c in contracts.values()})
    for table in domains.table_names(case.config):
        if table.endswith("bias"):
            layer, _, part = table.partition("/")
            params["transformer"][layer][part][2] = 0
    return loaded


def _kept(name: str) -> np.ndarray:
    return np.arange(golden.load(name).config.num_domains) != 2


@pytest.mark.parametrize("name", ["ee6d", "joint_hetero"])
def test_biases_show_a_domain_that_was_never_trained(name: str) -> None:
    loaded = _case(name)
    surveyed = domains.survey(loaded)
    assert [d.trained for d in surveyed] == _kept(name).tolist()
    assert not surveyed[2].occupied
    prompts = loaded.params["transformer"]["soft_prompts"]
    assert surveyed[1].prompt_norm == pytest.approx(float(np.sqrt((prompts[1] ** 2).sum())))
    contract = dataclasses.replace(_CONTRACT, domain_id=2)
    assert domains.survey(_case(name, two=contract))[2].occupied


def test_fresh_rows_are_as_a_new_model_has_them() -> None:
    rows = domains.fresh_rows(_case(), seed=1)
    assert rows["soft_prompts"].std() == pytest.approx(0.02, rel=0.15)
    bound = (6 / (4 + 56 * 48)) ** 0.5
    assert 0.95 * bound < np.abs(rows["action_encoder/kernel"]).max() <= bound
    assert not rows["action_decoder/bias"].any()
    assert not np.array_equal(
        rows["soft_prompts"], domains.fresh_rows(_case(), seed=2)["soft_prompts"]
    )


def test_a_copied_domain_changes_its_rows_and_nothing_else() -> None:
    loaded = _case()
    before = jax.tree.map(np.array, loaded.params)
    changed = domains.with_domain(
        loaded, 2, domains.read_rows(loaded, 1), _CONTRACT, note={"copied_from": 1}
    )
    assert tiny.equal(loaded.params, before)
    for table in domains.table_names(loaded.config):
        ours, theirs = (domains.read_tables(c)[table] for c in (changed, loaded))
        np.testing.assert_array_equal(ours[2], theirs[1])
        np.testing.assert_array_equal(ours[_kept("ee6d")], theirs[_kept("ee6d")])
        domains._put(changed.params, table, theirs)
    assert tiny.equal(changed.params, before)
    assert changed.contracts == {2: dataclasses.replace(_CONTRACT, domain_id=2)}
    assert json.loads(changed.files["domain_notes.json"]) == {"2": {"copied_from": 1}}
    assert domains.survey(changed)[2].note == {"copied_from": 1}


def test_a_domain_in_use_is_replaced_only_when_asked() -> None:
    loaded = _case(one=dataclasses.replace(_CONTRACT, domain_id=1))
    rows = domains.read_rows(loaded, 0)
    message = (
        r"domain 1 is in use \(trained, 10 Hz, interleaved, views front, wrist\); free .*\[2\]"
    )
    with pytest.raises(CheckpointError, match=message):
        domains.with_domain(loaded, 1, rows, None, note={})
    changed = domains.with_domain(loaded, 1, rows, None, note={}, overwrite=True)
    assert changed.contracts == {}, "its contract was that of the old rows"
    with pytest.raises(ConfigError, match=r"domain 4 does not exist; this model has 0 \.\. 3"):
        domains.with_domain(loaded, 4, rows, None, note={})
    joints = dataclasses.replace(_CONTRACT, action_space="joint", rotation_layout="none")
    with pytest.raises(ContractError, match="action space 'joint', but the model has 'ee6d'"):
        domains.with_domain(loaded, 2, rows, joints, note={})


@pytest.mark.parametrize(
    ("changes", "nearest", "why"),
    [
        ({}, 0, "same action space, .*other views; 10 Hz, wanted 10 Hz"),
        ({"anchor_hz": 24.0}, 3, "20 Hz, wanted 24 Hz"),  # of two that agree, the nearer rate
        ({"rotation_layout": "contiguous"}, 1, "same .*rotation layout"),
        ({"rotation_layout": "contiguous", "proprio": "zero"}, 1, "other proprio"),
    ],
)
def test_the_nearest_domain_is_chosen_by_contract(
    changes: dict[str, Any], nearest: int, why: str
) -> None:
    views = ("head", "hand")
    loaded = _case(
        a=dataclasses.replace(_CONTRACT, views=views),
        b=dataclasses.replace(_CONTRACT, domain_id=1, rotation_layout="contiguous"),
        untrained=dataclasses.replace(_CONTRACT, domain_id=2),
        d=dataclasses.replace(_CONTRACT, domain_id=3, anchor_hz=20.0, views=views),
    )
    best, reason = domains.nearest(loaded, dataclasses.replace(_CONTRACT, **changes))
    assert best == nearest
    assert re.search(why, reason)


def test_without_contracts_the_nearest_is_the_prompt_in_the_middle() -> None:
    loaded = _case()
    prompts = loaded.params["transformer"]["soft_prompts"]
    for domain_id, value in ((0, -3.0), (1, 1.0), (2, 0.0), (3, 5.0)):  # the mean of 0, 1, 3 is 1
        prompts[domain_id] = value
    best, why = domains.nearest(loaded, _CONTRACT)
    assert best == 1
    assert "of 3 prompts its is nearest to their mean, at 0 (the farthest at 62" in why
    for table in ("action_encoder", "action_decoder"):
        loaded.params["transformer"][table]["bias"][:] = 0
    with pytest.raises(CheckpointError, match="add one with --from=fresh"):
        domains.nearest(loaded, _CONTRACT)


@pytest.mark.parametrize("layout", ["hf", "lerobot-native", "orbax"])
def test_export_and_import_are_exact_through_every_layout(layout: str, tmp_path: Path) -> None:
    contract = dataclasses.replace(_CONTRACT, domain_id=1, relative_channels=(0, 1))
    loaded = _case(one=contract)
    pretrained.save_pretrained(
        tmp_path / "a", loaded.config, loaded.params, layout, contracts=loaded.contracts
    )
    source = pretrained.load_checkpoint(tmp_path / "a", stored=True)
    exported = domains.export_domain(source, 1, source="a")
    domains.write_domain(tmp_path / "one.safetensors", exported)
    read = domains.read_domain(tmp_path / "one.safetensors")
    assert tiny.equal(read.rows, domains.read_rows(loaded, 1))
    assert read.contract == contract
    assert read.provenance["backbone_sha256"] == domains.backbone_digest(loaded)
    assert read.provenance["checkpoint"] == "a"
    changed = domains.with_domain(source, 2, read.rows, read.contract, note={"imported": "one"})
    pretrained.save_pretrained(
        tmp_path / "b",
        changed.config,
        changed.params,
        layout,
        contracts=changed.contracts,
        files=changed.files,
    )
    again = pretrained.load_checkpoint(tmp_path / "b")
    assert tiny.equal(domains.read_rows(again, 2), read.rows)
    assert again.contracts == {1: contract, 2: dataclasses.replace(contract, domain_id=2)}
    assert domains.survey(again)[2].note == {"imported": "one"}
    with pytest.raises(CheckpointError, match="exists; give another name"):
        domains.write_domain(tmp_path / "one.safetensors", read)


def test_a_domain_of_another_model_is_refused(tmp_path: Path) -> None:
    exported = domains.export_domain(_case(), 0, source="a")
    message = r"action_space is 'ee6d' in the file and 'joint' here; .*hidden_size is 48"
    with pytest.raises(CheckpointError, match=message):
        domains.check_same_shape(exported, golden.load("joint_hetero").config)
    other = {**exported.model, "real_action_width": 12}
    with pytest.raises(CheckpointError, match="real_action_width is 12 in the file and 20 here"):
        domains.check_same_shape(dataclasses.replace(exported, model=other), _case().config)
    del other["real_action_width"]  # a file from before it was noted
    domains.check_same_shape(dataclasses.replace(exported, model=other), _case().config)
    rows = exported.rows | {"action_encoder/bias": np.zeros(47, np.float32)}
    with pytest.raises(CheckpointError, match=r"action_encoder/bias .* is \[47\], .* \[48\]"):
        domains.with_domain(_case(), 2, rows, None, note={})
    weights = golden.FOLDER / "ee6d" / "model.safetensors"
    with pytest.raises(CheckpointError, match="format 'pt', a domain's file says 'xvla-domain-1'"):
        domains.read_domain(weights)
    with pytest.raises(CheckpointError, match="no such file"):
        domains.read_domain(tmp_path / "none.safetensors")
    bad = dict(exported.rows, soft_prompts=np.full_like(exported.rows["soft_prompts"], np.nan))
    domains.write_domain(tmp_path / "bad", dataclasses.replace(exported, rows=bad))
    with pytest.raises(CheckpointError, match="soft_prompts: 240 values"):
        domains.read_domain(tmp_path / "bad")
