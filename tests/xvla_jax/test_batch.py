"""The field tables of the two doors: the types, the checks, and what the peers really send."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_type_hints

import numpy as np
import pytest
from jax.sharding import NamedSharding

from eval.client.episode import EpisodeClient
from eval.client.remote import request_fields
from eval.pictures import ENCODINGS
from tests.eval.client.test_episode import PROFILE, RAW
from tests.xvla_jax import tiny
from tests.xvla_jax.training.test_augment import collated, jitter_fields
from xvla_jax.batch import (
    LETTERS,
    Batch,
    Observation,
    abstract_batch,
    check_batch,
    check_observation,
    door_table,
    fields_of,
)
from xvla_jax.errors import InputError
from xvla_jax.sharding import BATCH_SPEC

DOORS = (Batch, Observation)
OPTIONAL = ("jitter", "jitter_order", "channel_mask")


@pytest.mark.parametrize("door", DOORS)
def test_every_letter_and_dtype_of_a_door_is_known(door: type) -> None:
    fields = fields_of(door)
    assert list(fields) == list(get_type_hints(door))
    for field, _ in fields.values():
        assert set(field.shape) <= set(LETTERS)
        assert np.dtype(field.dtype).kind in "uibfU"
        assert field.meaning


@pytest.mark.parametrize("door", DOORS)
def test_the_markdown_has_a_line_for_each_field_and_letter(door: type) -> None:
    fields, table = fields_of(door), door_table(door)
    assert [line for line in table.splitlines() if line.startswith("| `")] == [
        f"| `{name}`{' (optional)' * (name in OPTIONAL or 'prefix' in name)} "
        f"| {field} | {field.meaning} |"
        for name, (field, _) in fields.items()
    ]
    for letter in {letter for field, _ in fields.values() for letter in field.shape}:
        assert f"| {letter} | {LETTERS[letter]} |" in table


def test_a_field_reads_as_dtype_and_shape() -> None:
    assert str(fields_of(Batch)["actions"][0]) == "float32[B, T, D]"
    assert str(fields_of(Observation)["images"][0]) == "list of uint8[H, W, C]"
    assert str(fields_of(Observation)["domain_id"][0]) == "int"


def test_what_data_collates_is_a_batch() -> None:
    batch, _ = collated(seed=6)
    fields = fields_of(Batch)
    assert set(batch) == set(fields) - {"channel_mask"}, "all of this row was recorded"
    for name, value in batch.items():
        assert (value.dtype, value.ndim) == (fields[name][0].dtype, len(fields[name][0].shape)), (
            name
        )


def test_the_abstract_batch_has_the_shapes_that_data_collates() -> None:
    batch, _ = collated(seed=6)
    length = batch["input_ids"].shape[1]
    sizes: dict[str, Any] = {"num_views": 3, "shown": 3, "image_size": 32, "text_length": length}
    placement = NamedSharding(tiny.mesh(1, 1), BATCH_SPEC)
    abstract = abstract_batch(tiny.CONFIG, 8, **sizes, jitter=True, sharding=placement)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in abstract.items()} == {
        # this row has chunks of 30 actions, the tiny model 6
        name: ((8, 6, 20) if name == "actions" else value.shape, value.dtype)
        for name, value in batch.items()
    }
    smaller: dict[str, Any] = sizes | {"shown": 2}
    fewer = abstract_batch(tiny.CONFIG, 8, **smaller, jitter=False, sharding=placement)
    assert set(fewer) == set(tiny.batch())
    assert fewer["images"].shape == (8, 2, 32, 32, 3)
    assert fewer["view_mask"].shape == (8, 3)
    masked = abstract_batch(
        tiny.CONFIG, 8, **sizes, jitter=False, channel_mask=True, sharding=placement
    )
    assert set(masked) == set(tiny.batch()) | {"channel_mask"}
    assert (masked["channel_mask"].shape, masked["channel_mask"].dtype) == ((8, 20), bool)


def _asked() -> dict[str, Any]:
    client = EpisodeClient(PROFILE)
    client.instruct("pick up")
    return client.request(RAW)


def test_what_the_episode_client_asks_with_is_an_observation() -> None:
    observation = _asked()
    fields = fields_of(Observation)
    assert set(observation) == set(fields) - {"prefix", "prefix_committed", "prefix_mode"}
    check_observation(observation, tiny.CONFIG)
    assert observation["proprio"].dtype == fields["proprio"][0].dtype
    sent = request_fields(observation, side=None, encode=ENCODINGS["raw"])
    renamed = {"language_instruction", "image0", "image1"}  # as X-VLA's server names them
    assert set(sent) - renamed == {"proprio", "domain_id"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"proprio": None}, r"observation 1: there is no 'proprio'; there is \['domain_id'"),
        ({"proprio": np.zeros((1, 20))}, r"proprio has float64\[1, 20\]; float32\[D\] is expected"),
        ({"proprio": ["a"]}, r"proprio has <U1\[1\]; float32\[D\]"),
        ({"images": [np.zeros((2, 2, 3))]}, r"images has float64\[2, 2, 3\]; list of uint8"),
        ({"images": [np.zeros((2, 2), np.uint8)]}, r"images has uint8\[2, 2\]"),
        ({"instruction": b"pick"}, "instruction is a bytes; a str is expected"),
        ({"domain_id": 1.5}, r"domain_id has float64\[\]; int is expected"),
        ({"domain_id": 30}, "domain_id 30 is out of range"),
        ({"prefix": np.zeros(20)}, r"prefix has float64\[20\]; float32\[P, D\]"),
        ({"prefix_committed": [1]}, r"prefix_committed has int64\[1\]; int"),
    ],
)
def test_what_is_no_observation_is_refused_by_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_observation(_asked() | change, tiny.CONFIG, who="observation 1: ")


@pytest.mark.parametrize("change", [{"prefix": None}, {"proprio": np.zeros(20)}, {"domain_id": 3}])
def test_other_precision_and_absent_options_are_fine(change: dict[str, Any]) -> None:
    check_observation(_asked() | change, tiny.CONFIG)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("images", lambda x: x[:, :, :16], r"images'\] has S = 32 in \[8, 3, 16, 32, 3\]; 16 is"),
        ("images", lambda x: x.astype(np.float32), r"float32\[8, .*; uint8\[B, V, S, S, C\] is"),
        ("view_mask", lambda x: x[:, :2], r"view_mask'\] has V = 2"),
        ("view_mask", np.zeros_like, "all False: at least one view must be real"),
        ("input_ids", lambda x: x[0], r"input_ids'\] is int32\[12\]; int32\[B, L\]"),
        ("proprio", lambda x: x[:, :7], "7 channels; action space 'ee6d' has 20"),
        ("actions", lambda x: x[:, :5], "has T = 5 .* 6 is expected"),
        ("domain_id", lambda x: x - 30, "out of range; this model has domains 0 .. 29"),
    ],
)
def test_what_is_no_batch_is_refused_by_field(
    name: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    batch = tiny.batch()
    check_batch(batch, tiny.CONFIG)
    with pytest.raises(InputError, match=message):
        check_batch(batch | {name: change(batch[name])}, tiny.CONFIG)
    del batch[name]
    with pytest.raises(InputError, match=f"the batch has no '{name}'"):
        check_batch(batch, tiny.CONFIG)


def test_check_batch_takes_thejitter_fields() -> None:
    check_batch(tiny.batch() | jitter_fields(), tiny.CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jitter": np.float32(np.nan)}, "has a factor nan; factors are finite and above 0"),
        ({"jitter": np.float32(np.inf)}, "has a factor inf"),
        ({"jitter": np.float32(0)}, r"has a factor 0\.0"),
        ({"jitter": np.float32(-0.5)}, r"has a factor -0\.5"),
        ({"jitter_order": np.int32(2)}, r"has \[0, 2, 2\]; a permutation of 0, 1, 2"),
        ({"jitter_order": np.int32(-1)}, r"has \[0, -1, 2\]; a permutation"),
    ],
)
def test_check_batch_refuses_what_is_no_jitter(change: dict[str, Any], message: str) -> None:
    fields = jitter_fields()
    fields["jitter_order"][:] = [0, 1, 2]
    for name, value in change.items():
        fields[name][5, 2, 1] = value
    with pytest.raises(InputError, match=message):
        check_batch(tiny.batch() | fields, tiny.CONFIG)


def test_check_batch_wants_both_fields_in_shape() -> None:
    fields = jitter_fields()
    for name, other in (("jitter", "jitter_order"), ("jitter_order", "jitter")):
        with pytest.raises(InputError, match=f"the batch has no '{other}'"):
            check_batch(tiny.batch() | {name: fields[name]}, tiny.CONFIG)
    short = {name: value[:, :2] for name, value in fields.items()}
    with pytest.raises(InputError, match=r"'jitter'\] has V = 2"):
        check_batch(tiny.batch() | short, tiny.CONFIG)
