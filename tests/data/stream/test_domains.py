"""Ids of domains and the channel mask, as batches carry them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from data.poses.arms import NoGripper
from data.stream.pipeline import batches, one_pass
from data.stream.position import check_position
from data.trajectory import Source
from tests.data.fakes import SHAPE, FakeReader, tokenize


def source(**changes: Any) -> Source:
    """A source of one episode whose row has other fields."""
    reader = FakeReader([1])
    reader.spec = dataclasses.replace(reader.spec, **changes)
    return Source(reader, 1.0)


def without_gripper(**changes: Any) -> Source:
    """The same with an arm that has no gripper."""
    (arm,) = FakeReader([1]).spec.arms
    return source(arms=(dataclasses.replace(arm, gripper=NoGripper()),), **changes)


def test_names_become_ids_of_the_run() -> None:
    new = source(name="new", domain="new", domain_id=None)
    old = source()
    (batch,) = one_pass([new, old], **{**SHAPE, "batch_size": 20}, tokenize=tokenize)
    assert set(batch["domain_id"].tolist()) == {19, 3}
    options = {**SHAPE, "batch_size": 20, "domains": {"new": 41, "libero": 7}}
    (batch,) = one_pass([new, old], **options, tokenize=tokenize)
    assert set(batch["domain_id"].tolist()) == {41, 7}
    with pytest.raises(ValueError, match=r"'new': its domain 'new' has no id; .* are libero"):
        next(one_pass([new], **{**options, "domains": {"libero": 7}}, tokenize=tokenize))


def test_a_mask_is_in_all_batches_of_a_mixture_that_lacks_a_channel() -> None:
    stick = without_gripper(name="stick", domain="stick", domain_id=None)
    options = {**SHAPE, "batch_size": 4, "tokenize": tokenize}
    with batches([stick, source()], **options, seed=0, shuffle_buffer=8) as stream:
        for _, batch in zip(range(3), stream, strict=False):
            lacking = ~batch["channel_mask"]
            np.testing.assert_array_equal(lacking[:, 9], batch["domain_id"] == 19)
            assert not np.delete(lacking, 9, axis=1).any()
    plain, masked = (list(one_pass([source()], **options, masked=m)) for m in (False, True))
    assert len(plain) == len(masked) > 0
    assert not any("channel_mask" in batch for batch in plain)
    assert all(batch["channel_mask"].all() for batch in masked)


def test_the_place_in_the_data_does_not_depend_on_ids() -> None:
    """Ids are compared by the checkpoint's table; a row that fixes its id has it in its name."""
    new = source(name="new", domain="new", domain_id=None)
    options = {**SHAPE, "tokenize": tokenize, "seed": 0, "shuffle_buffer": 8}
    with (
        batches([new], **options) as one,
        batches([new], **options, domains={"new": 99}) as other,
        batches([source(name="new", domain="b", domain_id=None)], **options) as renamed,
    ):
        check_position(one.position, other.position["stream"])
        with pytest.raises(ValueError, match="belongs to another stream"):
            check_position(one.position, renamed.position["stream"])
