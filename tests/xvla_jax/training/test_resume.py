"""Fields that may change when a run is resumed, and those that may not."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest

from configs import debug
from tests.xvla_jax import tiny
from xvla_jax.errors import ConfigError
from xvla_jax.training.resume import (
    MISSING,
    Difference,
    Effect,
    check_resumed,
    check_same_domains,
    check_same_model,
    check_same_teacher,
    differences,
    effect_of,
)


def _config(**changes: Any) -> dict[str, Any]:
    config: Any = debug.get_config()
    config.update_from_flattened_dict(changes)
    return config.to_dict()


def test_every_field_of_a_config_has_a_row() -> None:
    fields = [d.field for d in differences(_config(), {})]
    assert len(fields) > 40
    assert [field for field in fields if effect_of(field) is None] == []


@pytest.mark.parametrize(
    ("field", "value", "effect"),
    [
        ("optimizer.mode", "lora", Effect.REFUSED),
        ("optimizer.iters", 9, Effect.OTHER),
        ("noise_draws", 4, Effect.OTHER),
        ("distill.steps", 1, Effect.OTHER),
        ("context_attends_to", "context", Effect.REFUSED),
        ("rtc.max_delay", 2, Effect.REFUSED),
        ("batch_size", 4, Effect.REFUSED),
        ("seed", 1, Effect.REFUSED),
        ("data.lanes", 2, Effect.REFUSED),
        ("data.deal", "even", Effect.REFUSED),
        ("packed_views", "auto", Effect.NONE),
        ("data.root", "elsewhere", Effect.NONE),
        ("mesh.fsdp", 2, Effect.NONE),
        ("distributed.kind", "slurm", Effect.NONE),
        ("keep_every", 10, Effect.NONE),
        ("action_mode", "auto", Effect.REFUSED),
        ("real_action_dim", 6, Effect.REFUSED),
        ("from_scratch", True, Effect.NONE),
    ],
)
def test_a_change_is_logged_or_refused(
    field: str, value: Any, effect: Effect, caplog: pytest.LogCaptureFixture
) -> None:
    assert effect_of(field) is effect
    before, after = _config(), _config(**{field: value})
    if effect is Effect.REFUSED:
        with pytest.raises(ConfigError, match=f"config.{field}: .* saved, {value!r} now"):
            check_resumed(before, after)
        return
    with caplog.at_level(logging.INFO):
        check_resumed(before, after)
    [record] = caplog.records
    assert f"config.{field} was" in record.message
    assert f"is now {value!r}" in record.message
    level = logging.INFO if effect is Effect.NONE else logging.WARNING
    assert record.levelno == level


def test_all_refusals_are_reported_at_once() -> None:
    with pytest.raises(ConfigError, match=r"batch_size: 8 saved, 4 now; config.seed: 0 saved"):
        check_resumed(_config(), _config(batch_size=4, seed=1))


def test_a_refusal_says_the_way_on() -> None:
    with pytest.raises(ConfigError, match=r"another --workdir, where --config.init_from") as caught:
        check_resumed(_config(), _config(batch_size=4))
    assert "config.accumulate may change" in str(caught.value)
    check_resumed(_config(), _config(accumulate=2, init_from="old"))  # both may
    with pytest.raises(ConfigError) as caught:
        check_resumed(_config(), _config(seed=1))
    assert "accumulate" not in str(caught.value)
    assert all(effect_of(field) is Effect.REFUSED for field in ("batch_size", "data.lanes"))


def test_equal_configs_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        check_resumed(_config(), _config())
    assert not caplog.records


def test_a_run_from_before_a_field_was_added_goes_on() -> None:
    before, after = _config(), _config(action_mode="auto")
    for field in (
        "action_mode",
        "real_action_dim",
        "from_scratch",
        "model_default",
        "noise_draws",
        "rtc",
        "distill",
        "context_attends_to",
    ):
        del before[field]
    check_resumed(before, _config())
    with pytest.raises(ConfigError, match=r"config\.action_mode: .*missing.* saved, 'auto' now"):
        check_resumed(before, after)


def test_another_model_is_refused_by_field() -> None:
    """Such as when config.init_from names a checkpoint of another action space on resuming."""
    check_same_model(tiny.CONFIG.to_dict(), tiny.CONFIG)
    other = dataclasses.replace(tiny.CONFIG, action_mode="auto", real_action_dim=6)
    message = "action_mode is 'auto' now and was 'ee6d'; real_action_dim is 6 now and was 20"
    with pytest.raises(ConfigError, match=message):
        check_same_model(tiny.CONFIG.to_dict(), other)
    delayed = dataclasses.replace(tiny.CONFIG, rtc_max_delay=2)
    with pytest.raises(ConfigError, match="rtc_max_delay is 2 now and was 0"):
        check_same_model(tiny.CONFIG.to_dict(), delayed)


def test_another_teacher_is_refused() -> None:
    teacher = {"path": "here", "sha256": "a1"}
    check_same_teacher({"path": "moved", "sha256": "a1"}, teacher, steps=1)
    with pytest.raises(
        ConfigError, match=r"is here \(SHA-256 a1\); this run began from 'o' \(b2\)"
    ):
        check_same_teacher({"path": "o", "sha256": "b2"}, teacher, steps=1)
    with pytest.raises(ConfigError, match=r"began from '' \(none: random weights"):
        check_same_teacher(None, teacher, steps=1)


def test_differences_go_into_the_depth_and_take_lists_for_tuples() -> None:
    ours = {"a": {"b": 1, "c": (1, 2)}, "d": [{"e": 1}], "f": {}}
    theirs = {"a": {"b": 2, "c": [1, 2]}, "d": [{"e": 2}], "g": None}
    assert differences(ours, theirs) == [
        Difference("a.b", 1, 2),
        Difference("d", [{"e": 1}], [{"e": 2}]),
        Difference("f", {}, MISSING),
        Difference("g", MISSING, None),
    ]


def test_a_run_of_other_domains_is_not_resumed() -> None:
    check_same_domains({"a": 19, "b": 20}, {"b": 20, "a": 19})
    check_same_domains(None, {"a": 19})  # of a release without names
    with pytest.raises(ConfigError) as caught:
        check_same_domains({"a": 19, "b": 20}, {"a": 20, "c": 19})
    text = str(caught.value)
    assert "'a' has id 20 now and 19 in the checkpoint" in text
    assert f"'b' has id {MISSING} now and 20 in the checkpoint" in text
    assert f"'c' has id 19 now and {MISSING} in the checkpoint" in text
    assert "\n" not in text


def test_a_run_from_before_there_were_names_of_domains_resumes() -> None:
    before = _config()
    del before["new_domains"]
    check_resumed(before, _config())
