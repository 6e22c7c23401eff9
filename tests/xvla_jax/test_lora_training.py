"""LoRA as a mode of the trainer: only the adapter trains, on any mesh, over a base that stays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.xvla_jax import tiny
from xvla_jax import flow, sharding
from xvla_jax.errors import ConfigError
from xvla_jax.lora import LoraConfig, apply_adapter
from xvla_jax.models.xvla import abstract_params
from xvla_jax.training.optimizer import OptimizerConfig
from xvla_jax.training.state import Recipe, TrainState, abstract_state, init_state
from xvla_jax.training.step import make_train_step

# Two leaves alone, which compile in no time.
_LORA = LoraConfig(
    rank=2,
    alpha=6,
    target_modules=r"transformer\.blocks\.\d+\.mlp\.fc1",
    modules_to_save=("transformer.soft_prompt_hub",),
)
_RECIPE = Recipe(
    tiny.MODEL,
    OptimizerConfig(
        schedule="xvla_release", iters=9, learning_rate=0.1, freeze_steps=1, max_grad_norm=0.0
    ),
    lora=_LORA,
)
_WHOLE = dataclasses.replace(_RECIPE, lora=LoraConfig(rank=2, alpha=4))


def _kernel(tree: Any) -> Any:
    return tree["transformer"]["blocks"]["mlp"]["fc1"]["kernel"]


@functools.cache
def _run() -> Any:
    return make_train_step(_RECIPE, tiny.PROCESSOR, seed=0)


@pytest.fixture
def toy_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of a matrix with an adapter and of a table that trains completely; no model is run."""

    def losses(
        model: Any, params: Any, batch: Mapping[str, Any], *, noise: Any, t: Any, rng: Any
    ) -> dict[str, jax.Array]:
        del model, noise, rng
        layers = [jax.tree.map(lambda leaf, i=i: leaf[i], _kernel(params)) for i in range(2)]
        sums = sum(((jnp.ones((1, 32)) @ layer).sum() for layer in layers), start=jnp.zeros(()))
        total = sums + params["transformer"]["soft_prompts"].sum()
        return {"sum": total * jnp.ones_like(t) * (1 + 0 * batch["proprio"][:, 0])}

    monkeypatch.setattr(flow, "sample_losses", losses)


@functools.cache
def _base() -> Any:
    """Made-up parameters of the tiny model, without compiling how they are made."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), abstract_params(tiny.CONFIG)
    )


def _start(data: int = 1, fsdp: int = 1) -> TrainState:
    return init_state(_RECIPE, tiny.mesh(data, fsdp), seed=3, params=_base())


def _steps(state: TrainState, count: int, data: int = 1, fsdp: int = 1) -> tuple[TrainState, Any]:
    mesh = tiny.mesh(data, fsdp)
    metrics: Any = None
    for _ in range(count):
        with jax.set_mesh(mesh):
            state, metrics = _run()(state, sharding.global_batch(tiny.batch(), mesh))
    return state, metrics


def test_gradients_through_merged_weights_are_those_of_two_products() -> None:
    rng = np.random.default_rng(0)
    x, w, a, b = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((5, 4), (4, 3), (4, 2), (2, 3))
    )
    scale, weights = np.float32(2), jnp.arange(15.0).reshape(5, 3)

    def merged(pair: Any) -> jax.Array:
        kernel = apply_adapter({"kernel": w}, {"kernel": pair}, {("kernel",): scale})["kernel"]
        return (jnp.tanh(x @ kernel) * weights).sum()

    def two_products(pair: Any) -> jax.Array:  # as PEFT computes an adapter that is not merged
        return (jnp.tanh(x @ w + scale * ((x @ pair["a"]) @ pair["b"])) * weights).sum()

    pair = {"a": a, "b": b}
    ours, theirs = (jax.grad(loss)(pair) for loss in (merged, two_products))
    for name in pair:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-5)
        assert float(jnp.abs(theirs[name]).max()) > 1


@pytest.mark.usefixtures("toy_loss")
def test_only_the_adapter_learns_and_waits_as_its_groups_do() -> None:
    start = jax.tree.map(lambda leaf: np.array(leaf, copy=True), _start())
    assert tiny.equal(start.base, _base())
    state, metrics = _steps(_start(), 1)
    frozen = jax.device_get(state)
    prompts = start.params["transformer"]["soft_prompts"]
    np.testing.assert_array_equal(prompts, _base()["transformer"]["soft_prompts"])
    # Adam's first step is the rate; the prompts' factor is 1, and the pair waits
    np.testing.assert_allclose(
        frozen.params["transformer"]["soft_prompts"], prompts - 0.1, rtol=0, atol=1e-6
    )
    assert tiny.equal(_kernel(frozen.params), _kernel(start.params))
    assert float(metrics["learning_rate/transformer_core"]) == 0

    after, metrics = _steps(state, 1)
    a, b = _kernel(after.params)["a"], _kernel(after.params)["b"]
    assert tiny.equal(a, _kernel(start.params)["a"]), "B is zero, so A has no gradient yet"
    # d sum / d b = scale * column sums of a, with scale 3; Adam moves by the rate
    down = np.sign(_kernel(start.params)["a"].sum(axis=1, keepdims=True)).swapaxes(1, 2)
    np.testing.assert_allclose(b, -0.1 * np.broadcast_to(down, b.shape), rtol=1e-4)
    assert tiny.equal(after.base, _base())
    assert float(metrics["learning_rate/transformer_core"]) == pytest.approx(0.1)
    merged = _kernel(_RECIPE.acting(after))
    expected = _kernel(_base()) + 3 * np.asarray(a) @ np.asarray(b)
    np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("toy_loss")
def test_moments_are_the_adapters_alone_and_other_meshes_agree() -> None:
    state, _ = _steps(_start(), 2)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state[1].mu)) == size
    assert size < sum(leaf.size for leaf in jax.tree.leaves(state.base)) / 4
    split, _ = _steps(_start(2, 4), 2, 2, 4)
    assert tiny.equal(split.base, state.base)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        jax.device_get(split.params),
        jax.device_get(state.params),
    )
    table = split.base["vlm"]["text_encoder"]["token_embedding"]
    assert {s.data.shape for s in table.addressable_shards} == {(51289, 4)}
    assert _kernel(split.params)["a"].sharding.is_fully_replicated


def test_the_table_of_groups_counts_adapter_and_base() -> None:
    rows = {row.name: row for row in _WHOLE.group_rows()}
    assert set(rows) == {"vlm", "soft_prompts", "action_heads", "transformer_core", "base"}
    base = sum(leaf.size for leaf in jax.tree.leaves(_base()))
    assert (rows["base"].parameters, rows["base"].frozen_until) == (base, None)
    # 2 blocks: qkv (32, 96), proj (32, 32), fc1 (32, 128), fc2 (128, 32); both projections (16, 32)
    core = 2 * 2 * (128 + 64 + 160 + 160) + 2 * 2 * 48
    assert rows["transformer_core"].parameters == core
    assert (rows["transformer_core"].frozen_until, rows["soft_prompts"].frozen_until) == (1, 0)


def test_what_cannot_be_trained_is_refused() -> None:
    for change, message in (
        ({"rank": 0}, "config.lora.rank is 0; 1 or more"),
        ({"dropout": 0.1}, "config.lora.dropout is 0.1; only 0 is possible"),
        (
            {"target_modules": "(qkv"},
            r"^config.lora.target_modules is '\(qkv'; a regular expression",
        ),
        (
            {"modules_to_save": ("[",)},
            r"^config.lora.modules_to_save is \['\['\]; nothing, or a list",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(_LORA, **change)
    with pytest.raises(ConfigError, match=r"set config\.init_from, its base"):
        init_state(_RECIPE, tiny.mesh(1, 1), seed=0)
    nothing = dataclasses.replace(
        _RECIPE,
        lora=dataclasses.replace(_LORA, modules_to_save=()),
        config=dataclasses.replace(_RECIPE.config, mode="prompts"),
    )
    with pytest.raises(ConfigError, match=r"mode is 'prompts', which trains nothing of this adap"):
        abstract_state(nothing, tiny.mesh(1, 1))


def test_a_module_that_the_model_lacks_is_named() -> None:
    assert LoraConfig().unmatched(tiny.CONFIG) == []
    names = ("transformer.soft_promt_hub", "action_decoder", "transformer")
    assert LoraConfig(modules_to_save=names).unmatched(tiny.CONFIG) == [names[0]]


@pytest.mark.slow
def test_an_adapter_of_every_layer_lowers_the_loss() -> None:
    optimizer = OptimizerConfig(
        schedule="constant", iters=9, learning_rate=1e-2, learning_coef=1.0, max_grad_norm=1.0
    )
    recipe = dataclasses.replace(_WHOLE, config=optimizer)
    state = init_state(recipe, tiny.mesh(1, 1), seed=0, params=_base())
    run = make_train_step(recipe, tiny.PROCESSOR, seed=0)
    host = tiny.batch()
    batch = sharding.global_batch(host | {"images": host["images"][:, :2]}, tiny.mesh(1, 1))
    losses = []
    for _ in range(6):
        state, metrics = run(state.replace(step=jnp.int32(0)), batch)  # one draw of the noise
        losses.append(float(metrics["loss"]))
        norms = [float(v) for k, v in metrics.items() if k.startswith("grad_norm/")]
        assert min(norms) > 0
    assert losses[-1] < 0.8 * losses[0]
