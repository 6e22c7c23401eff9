"""The golden cases: outputs of the original PyTorch model, and how near ours must come.

``tests/fixtures/golden`` holds three toy models with weights in the released layout, inputs, and
what the original code makes of them in float64. Tolerances are those that its authors measured
PyTorch's own float32 against.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import xvla_jax
from xvla_jax import flow
from xvla_jax.models.xvla import Context

FOLDER = pathlib.Path(__file__).parents[1] / "fixtures" / "golden"
CASES = ("ee6d", "joint_hetero", "auto")

# Output -> worst error over tolerance, over all comparisons of a test run; conftest prints it.
worst: dict[str, float] = {}


@dataclasses.dataclass(frozen=True)
class Case:
    """One golden model with its inputs and outputs."""

    name: str
    config: xvla_jax.XVLAConfig
    params: Mapping[str, Any]
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    model: xvla_jax.XVLA

    @property
    def pixels(self) -> np.ndarray:
        """float32[B, V, H, W, 3]: the files keep channels first."""
        return self.inputs["pixel_values"].transpose(0, 1, 3, 4, 2)

    @property
    def ids(self) -> np.ndarray:
        """int32[B, L]."""
        return self.inputs["input_ids"].astype(np.int32)

    def batch(self) -> dict[str, jax.Array]:
        """Returns the batch for `flow.loss_terms`."""
        return {
            "pixels": jnp.asarray(self.pixels),
            "view_mask": jnp.asarray(self.inputs["image_mask"]),
            "input_ids": jnp.asarray(self.ids),
            "domain_id": jnp.asarray(self.inputs["domain_id"], jnp.int32),
            "proprio": jnp.asarray(self.inputs["proprio"]),
            "actions": jnp.asarray(self.inputs["action"]),
        }

    def forward(self) -> tuple[Context, jax.Array, Any, Any]:
        """Context, head output on the golden noisy actions, inner values of towers and of head."""
        return _forward_of(self.name)

    def encode_views(self, shown: int, mask: np.ndarray) -> Context:
        """Context of the first ``shown`` views' pixels under another view mask."""
        pixels, ids = jnp.asarray(self.pixels[:, :shown]), jnp.asarray(self.ids)
        return _encode(self.model, self.params, pixels, jnp.asarray(mask), ids)

    def loss_and_grads(self, params: Any, step: int) -> tuple[dict[str, jax.Array], Any]:
        """Loss terms and gradients of their sum for training step 0, 1 or 2."""
        return _loss_and_grads(
            self.model,
            params,
            self.batch(),
            jnp.asarray(self.inputs["train_noise"][step]),
            flow.stratified_time(jnp.asarray(self.inputs["train_u"][step]), len(self.pixels)),
        )


@functools.cache
def _forward_of(name: str) -> Any:
    case = load(name)
    i = case.inputs
    head = tuple(jnp.asarray(i[k]) for k in ("head_action", "proprio", "domain_id", "head_t"))
    return _forward(
        case.model,
        case.params,
        (jnp.asarray(case.pixels), jnp.asarray(i["image_mask"]), jnp.asarray(case.ids)),
        head,
    )


@functools.partial(jax.jit, static_argnums=0)
def _forward(model: xvla_jax.XVLA, params: Any, observation: Any, head: Any) -> Any:
    def run(method: str, *args: Any) -> Any:
        return model.apply(
            {"params": params},
            *args,
            method=method,
            capture_intermediates=True,
            mutable=["intermediates"],
        )

    context, towers = run("encode", *observation)
    output, inside = run("denoise", context, *head)
    return context, output, towers["intermediates"], inside["intermediates"]


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: xvla_jax.XVLA, params: Any, *observation: Any) -> Any:
    return model.apply({"params": params}, *observation, method="encode")


# Sums of float32 that LLVM does not vectorise lose digits: at level 0 of tests/conftest.py one norm
# misses its tolerance by a twentieth.
@functools.partial(
    jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 1}
)
def _loss_and_grads(
    model: xvla_jax.XVLA, params: Any, batch: Any, noise: jax.Array, t: jax.Array
) -> tuple[dict[str, jax.Array], Any]:
    def loss(p: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        terms = flow.loss_terms(model, p, batch, noise=noise, t=t)
        return sum(terms.values(), start=jnp.zeros(())), terms

    (_, terms), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return terms, grads


@functools.cache
def load(name: str) -> Case:
    """A case by name, read once."""
    folder = FOLDER / name
    config, params = xvla_jax.load_pretrained(folder)
    with np.load(folder / "inputs.npz") as inputs, np.load(folder / "outputs.npz") as outputs:
        return Case(name, config, params, dict(inputs), dict(outputs), xvla_jax.XVLA(config))


def assert_close(
    what: str, actual: Any, expected: Any, *, of_largest: float = 0.0, rtol: float = 0.0
) -> None:
    """Compares within ``of_largest * max|wanted|`` or ``rtol * |wanted|``.

    The worst ratio is kept for the report.
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, golden {expected.shape}"
    if not expected.size:
        return
    allowed = of_largest * np.abs(expected).max() if of_largest else rtol * np.abs(expected)
    error = np.abs(actual - expected)
    ratio = float(np.max(np.divide(error, allowed, out=np.zeros_like(error), where=error > 0)))
    worst[what] = max(worst.get(what, 0.0), ratio)
    assert ratio <= 1.0, f"{what}: worst error is {ratio:.3g} times the tolerance"
