"""A context that does not attend to actions: one computation of it serves all steps."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax import flow
from xvla_jax.config import ATTENDED, CONTEXT, XVLAConfig
from xvla_jax.errors import CheckpointError, ConfigError
from xvla_jax.models.inference import inference_params
from xvla_jax.models.soft_transformer import KeptContext
from xvla_jax.models.xvla import XVLA, Context, abstract_params
from xvla_jax.planning.flops import traced_flops
from xvla_jax.pretrained import load_checkpoint, save_pretrained

_B, _T, _D = 2, tiny.CONFIG.num_actions, 20
_APART = dataclasses.replace(tiny.CONFIG, context_attends_to=CONTEXT)
_DOMAINS = jnp.asarray([0, 29], jnp.int32)


def _inputs() -> tuple[Context, jax.Array, jax.Array]:
    """Context, proprio and noise of two observations."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(0, 1, shape), jnp.float32)

    width = tiny.CONFIG.text.d_model
    return Context(draw(_B, 7, width), draw(_B, 5, width)), draw(_B, _D), draw(_B, _T, _D)


def _head(*, apart: bool, unroll: bool) -> tuple[XVLA, Any]:
    """A model, and parameters of its head: nothing here encodes."""
    params: Any = {"transformer": tiny.params()["transformer"]}
    params = inference_params(tiny.params()) if unroll else params
    model = XVLA(_APART if apart else tiny.CONFIG, unroll=unroll)
    return model, {"transformer": params["transformer"]}


_sample = jax.jit(flow.sample, static_argnums=0, static_argnames=("steps", "refresh"))


def _chunk(*, apart: bool, unroll: bool, steps: int, refresh: Any = None) -> np.ndarray:
    context, proprio, noise = _inputs()
    model, params = _head(apart=apart, unroll=unroll)
    rest: dict[str, Any] = {"noise": noise, "steps": steps, "refresh": refresh}
    return np.asarray(_sample(model, params, context, proprio, _DOMAINS, **rest))


def test_no_parameter_depends_on_it() -> None:
    shapes = (jax.tree.map(lambda x: x.shape, abstract_params(c)) for c in (_APART, tiny.CONFIG))
    assert next(shapes) == next(shapes)


def test_a_context_kept_is_that_of_every_step() -> None:
    """Blocks that are scanned compute context and actions together in each step, as in training."""
    exact = _chunk(apart=True, unroll=True, steps=3)
    np.testing.assert_allclose(exact, _chunk(apart=True, unroll=False, steps=3), atol=3e-6)
    frozen = _chunk(apart=True, unroll=True, steps=3, refresh=(0,))
    np.testing.assert_allclose(exact, frozen, atol=1e-6)
    assert np.abs(exact - _chunk(apart=False, unroll=True, steps=3)).max() > 1e-4


def test_actions_leave_no_trace_in_the_context() -> None:
    """By gradients: those of the context's tokens in the noisy actions are zero, and not back."""
    context, proprio, noise = _inputs()

    def tokens(noise: jax.Array, vlm: jax.Array, *, apart: bool) -> jax.Array:
        model, params = _head(apart=apart, unroll=False)

        def all_tokens(model: XVLA) -> jax.Array:
            head = model.transformer
            prepared: Any = model.prepare(Context(vlm, context.aux_visual_inputs), _DOMAINS)
            x = head._embed(noise, proprio, _DOMAINS, jnp.ones(_B))
            return head.blocks(jnp.concatenate([x, prepared.tokens], axis=1), False)[0]

        answer: Any = model.apply({"params": params}, method=all_tokens)
        return answer

    inputs = noise, context.vlm_features
    still, move = jax.tree.map(jnp.zeros_like, inputs), jax.tree.map(jnp.ones_like, inputs)
    for apart in (True, False):
        function = jax.jit(functools.partial(tokens, apart=apart))
        _, moved = jax.jvp(function, inputs, (move[0], still[1]))
        assert np.abs(moved[:, :_T]).max() > 0
        assert (np.abs(moved[:, _T:]).max() == 0) == apart
        _, moved = jax.jvp(function, inputs, (still[0], move[1]))
        assert np.abs(moved[:, :_T]).max() > 0


def test_the_sampler_computes_it_once() -> None:
    context, proprio, noise = _inputs()

    def flops(steps: int, *, apart: bool, refresh: Any = None) -> int:
        model, params = _head(apart=apart, unroll=True)
        sample = functools.partial(flow.sample, model, steps=steps, refresh=refresh)
        return traced_flops(
            lambda noise: sample(params, context, proprio, _DOMAINS, noise=noise), noise
        )

    one, ten = (flops(n, apart=True) for n in (1, 10))
    all_tokens = flops(2, apart=False) - flops(1, apart=False)
    assert (ten - one) / 9 < all_tokens / 2
    assert ten == pytest.approx(flops(10, apart=False, refresh=(0,)), rel=0.1)
    model, params = _head(apart=True, unroll=True)
    prepared = model.apply({"params": params}, context, _DOMAINS, method="prepare")
    assert isinstance(prepared, KeptContext)


def test_the_file_names_it_only_where_it_differs() -> None:
    stored = tiny.CONFIG.to_dict()
    assert "context_attends_to" not in stored
    apart = json.loads(json.dumps(_APART.to_dict()))
    assert apart["context_attends_to"] == CONTEXT
    assert XVLAConfig.from_dict(apart) == _APART
    assert XVLAConfig.from_dict(stored) == tiny.CONFIG
    back = dataclasses.replace(XVLAConfig.from_dict(apart), context_attends_to="all")
    assert "context_attends_to" not in back.to_dict()


def test_conversions_carry_it_to_what_can_run_it(tmp_path: Path) -> None:
    params = tiny.params()
    for layout in ("hf", "orbax"):
        save_pretrained(tmp_path / layout, _APART, params, layout)
        assert load_checkpoint(tmp_path / layout, stored=True).config == _APART
    with pytest.raises(CheckpointError, match=r"is 'context': LeRobot's X-VLA knows 'all' alone"):
        save_pretrained(tmp_path / "lerobot", _APART, params, "lerobot-native")
    assert not (tmp_path / "lerobot").exists()


def test_other_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"context_attends_to is 'none'; allowed .*'all' or 'con"):
        XVLAConfig.from_dict(tiny.CONFIG.to_dict() | {"context_attends_to": "none"})
    with pytest.raises(ConfigError, match="is 'none'; allowed are all, context"):
        dataclasses.replace(tiny.CONFIG, context_attends_to="none")  # pyright: ignore[reportArgumentType]
    assert ATTENDED == ("all", "context")
