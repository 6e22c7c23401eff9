"""The validation metric: what is compared, and how samples and sources are averaged."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax import flow
from xvla_jax.errors import ConfigError
from xvla_jax.training.state import TrainState
from xvla_jax.training.validation import Validation, make_eval_step


def _numbers(*values: float) -> dict[str, np.ndarray]:
    """A host batch of one number a row."""
    rows = np.array(values, np.float32)
    return {"actions": rows, "images": rows[:, None], "jitter": rows}


def _validation(sources: dict[str, list[dict[str, np.ndarray]]], **changes: Any) -> Validation:
    seen: list[list[float]] = []

    def eval_step(scale: float, batch: Any, key: jax.Array) -> dict[str, jax.Array]:
        assert "jitter" not in batch, "nothing is drawn for held-out samples"
        seen.append(np.asarray(batch["actions"]).tolist())
        return {"l1": scale * batch["actions"]}

    options: dict[str, Any] = {"batch_size": 3, "every": 10, "present_views": 1, "seed": 0}
    passes = {name: (lambda batches=batches: iter(batches)) for name, batches in sources.items()}
    return Validation(eval_step, lambda state: state.params, passes, **(options | changes))


def test_samples_weigh_the_same_and_so_do_sources() -> None:
    sources = {"a": [_numbers(1, 2, 3), _numbers(10)], "b": [_numbers(5, 5, 5)]}
    state = TrainState(jnp.int32(0), 2.0, {}, {}, jnp.int32(0))
    errors = _validation(sources).measure(state, tiny.mesh(1, 1))
    # the row that fills up the short batch three times counts once
    assert errors == {"val_l1/a": 2 * 16 / 4, "val_l1/b": 10.0, "val_l1": 9.0}


def test_it_is_due_now_and_then_and_at_the_end() -> None:
    validation = _validation({"a": []})
    assert [step for step in range(1, 26) if validation.due(step, 25)] == [10, 20, 25]
    with pytest.raises(ConfigError, match=r"validation\.every is 0"):
        _validation({"a": []}, every=0)


class _Seen:
    """In place of the model: its context holds its inputs."""

    config = tiny.CONFIG

    def apply(self, params: Any, *inputs: Any, method: str) -> Any:
        assert (method, len(inputs)) == ("encode", 3)
        return {"params": params["params"], "pixels": inputs[0]}


def test_errors_are_between_true_actions_and_the_samplers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in for the sampler returns its noise, scaled by the parameters."""

    def sample(model: Any, params: Any, context: Any, *rest: Any, **options: Any) -> jax.Array:
        assert context["params"] is params
        assert context["pixels"].dtype == jnp.float32, "images are normalised"
        assert options["steps"] == 4
        return params * options["noise"]

    monkeypatch.setattr(flow, "sample", sample)
    batch: Any = tiny.batch(size=4)
    key = jax.random.key(7)
    model: Any = _Seen()
    errors = make_eval_step(model, tiny.PROCESSOR, steps=4)(2.0, batch, key)
    error = np.abs(2 * np.asarray(jax.random.normal(key, (4, 6, 20))) - batch["actions"])
    expected = {
        "l1": error.mean((1, 2)),
        "position": error[..., [0, 1, 2, 10, 11, 12]].mean((1, 2)),
        "rotate6D": error[..., [*range(3, 9), *range(13, 19)]].mean((1, 2)),
        "gripper": error[..., [9, 19]].mean((1, 2)),
    }
    assert set(errors) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(errors[name], values, rtol=1e-5, err_msg=name)
