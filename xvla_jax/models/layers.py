"""Layers shared by the towers, and the policies of rematerialisation.

Letters in shape comments: B batch, V views, H W C image, N image tokens, L text tokens, T actions
of a chunk, D action width, M model width, P prompt length, S any sequence, K heads, E head width.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from xvla_jax.errors import ConfigError
from xvla_jax.models.kernels import Array, attend, attend_packed, drop, takes_packed
from xvla_jax.models.low_rank import Dense


class Kept(enum.StrEnum):
    """Names of values that a policy may keep, as blocks give them with ``checkpoint_name``."""

    PROJECTED = "projected"  # products that yield queries, keys and values, before their bias
    ATTENDED = "attended"  # result of attention, before its output projection
    BETWEEN = "between"  # a block's input plus its attention branch
    HIDDEN = "hidden"  # input of an MLP's activation
    MASK = "mask"  # of dropout, bool


@dataclasses.dataclass(frozen=True)
class RematPolicy:
    """A row of `REMAT`.

    Attributes:
        recompute: blocks compute activations again in the backward pass.
        saveable: the policy of ``jax.checkpoint`` for values to keep all the same; None keeps the
            block's input alone.
    """

    recompute: bool
    saveable: Callable[..., Any] | None = None


# From most memory and least time to least memory and most time.
REMAT: Final[Mapping[str, RematPolicy]] = {
    "none": RematPolicy(recompute=False),
    # Products with weights are kept; attention, norms and activations are computed again.
    "dots": RematPolicy(True, jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
    # Values with a name of `Kept`, and nothing else: in bfloat16 a third of "none". Masks are kept,
    # as drawing them again takes longer than reading them.
    "named": RematPolicy(True, jax.checkpoint_policies.save_only_these_names(*Kept)),
    "full": RematPolicy(True),
}


def remat_policy(name: str) -> RematPolicy:
    """Returns a row of `REMAT`.

    Raises:
        ConfigError: there is no row of that name.
    """
    if name not in REMAT:
        raise ConfigError(f"config.remat is {name!r}; allowed are {', '.join(REMAT)}")
    return REMAT[name]


def rematerialised(block: type[nn.Module], name: str, *, scanned: bool) -> type[nn.Module]:
    """Wraps a block in a policy; its call takes ``(x, train)``, ``train`` by position."""
    policy = remat_policy(name)
    if not policy.recompute:
        return block
    return nn.remat(
        block,
        static_argnums=(2,),  # train; 0 is the module
        policy=policy.saveable,
        # Barriers keep the compiler from merging both computations; a scan does so without them.
        prevent_cse=not scanned,
    )


def rematerialised_function(block: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Wraps a function of arrays, called in a scan, in a policy."""
    policy = remat_policy(name)
    if not policy.recompute:
        return block
    return jax.checkpoint(block, policy=policy.saveable, prevent_cse=False)


class Dropout(nn.Module):
    """Drops each element with probability ``rate`` and scales the others by 1 / keep.

    Masks equal those of ``nn.Dropout``.
    """

    rate: float
    deterministic: bool | None = None

    def __call__(self, x: Array, *, deterministic: bool | None = None) -> Array:
        """Returns ``x`` with elements dropped; all are kept if ``deterministic``."""
        return drop(x, self.mask(x.shape, deterministic=deterministic), self.rate)

    def mask(self, shape: tuple[int, ...], *, deterministic: bool | None = None) -> Array | None:
        """Draws the elements that are kept, bool of a shape; None keeps all."""
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
        if deterministic or self.rate == 0.0:
            return None
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, shape)
        # TPU's compiler would draw the mask inside the product that it masks, and then takes four
        # times as long for an MLP.
        return checkpoint_name(jax.lax.optimization_barrier(kept), Kept.MASK)


LAYER_NORM_EPSILON: Final = 1e-5  # everywhere in X-VLA; Flax's default is 1e-6

# Statistics are float32 whatever dtype is, and exact: E[x^2] - E[x]^2 would cancel.
LayerNorm = functools.partial(nn.LayerNorm, epsilon=LAYER_NORM_EPSILON, use_fast_variance=False)

# Checkpointed: the backward pass keeps the input alone, not four arrays of its size.
gelu_erf = jax.checkpoint(functools.partial(nn.gelu, approximate=False))
gelu_tanh = jax.checkpoint(functools.partial(nn.gelu, approximate=True))


def weights_shape(query: Array, key: Array) -> tuple[int, ...]:
    """Shape ``[..., K, S, S']`` of attention weights."""
    *batch, rows, heads, _ = query.shape
    return (*batch, heads, rows, key.shape[-3])


class PackedQKV(nn.Module):
    """One product for q, k and v (out axis ``[3, K, E]``), without the key's bias.

    The key's bias adds the same number to all scores of a query, which softmax ignores, so it has
    no effect and its gradient is zero. Left out, that zero is exact; computed, it would be rounding
    noise, which Adam scales up to full steps.
    """

    num_heads: int
    dtype: Any = jnp.float32

    def __call__(self, x: Array) -> tuple[Array, Array, Array, Array]:
        """``[..., M]`` -> q, k, and v before its bias, each ``[..., K, E]``; the bias ``[K, E]``.

        As attention weights sum to one, the bias of the values may be added to the result instead.
        """
        return split_qkv(*self.together(x), self.num_heads)

    @nn.compact
    def together(self, x: Array) -> tuple[Array, Array]:
        """``[..., M]`` -> the product ``[..., 3 * M]`` before its bias, and that, ``[3 * M]``."""
        width = x.shape[-1]
        init = nn.initializers.xavier_uniform()
        kernel = self.param("kernel", init, (width, 3 * width)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (3 * width,)).astype(self.dtype)
        return checkpoint_name(x.astype(self.dtype) @ kernel, Kept.PROJECTED), bias


def split_qkv(y: Array, bias: Array, num_heads: int) -> tuple[Array, Array, Array, Array]:
    """Splits results of `PackedQKV.together` as its call returns them."""
    heads = (3, num_heads, y.shape[-1] // (3 * num_heads))
    # [..., 3 * M] -> [..., 3, K, E] -> three of [..., K, E]
    query, key, value = jnp.moveaxis(y.reshape(*y.shape[:-1], *heads), -3, 0)
    query_bias, _, value_bias = bias.reshape(heads)
    return query + query_bias, key, value, value_bias


class KeyProjection(nn.Module):
    """Linear layer whose bias is kept for checkpoints, but has no effect; see `PackedQKV`."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """``[..., M] -> [..., M]``."""
        width = x.shape[-1]
        # Declared for checkpoints, which store it.
        self.param("bias", nn.initializers.zeros, (width,))
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (width, width))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return checkpoint_name(y, Kept.PROJECTED)


QKV = tuple[Array, Array, Array]  # query, key and value of some tokens, [B, S, K, E] each
KV = tuple[Array, Array]  # key and value alone, of tokens that others attend to


class SelfAttention(nn.Module):
    """Packed q, k, v, full attention, and an output projection."""

    width: int
    num_heads: int
    dropout: float = 0.0  # of the attention weights
    attention: str = "xla"  # a row of ``kernels.ATTENTION``
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Declares both products."""
        self.qkv = PackedQKV(self.num_heads, dtype=self.dtype)
        self.proj = Dense(self.width, dtype=self.dtype)
        self.drop = Dropout(self.dropout)

    def project(self, x: Array) -> QKV:
        """Projects ``[B, S, M]`` to the ``known`` of `__call__`."""
        query, key, value, value_bias = self.qkv(x)
        return query, key, value + value_bias

    def __call__(
        self,
        x: Array,
        *,
        known: QKV | None = None,
        rows: int | None = None,
        hidden: int = 0,
        train: bool = False,
    ) -> Array:
        """Attends among the tokens of ``x`` ``[B, S, M]`` and those of ``known`` behind them.

        Args:
            x: tokens.
            known: result of `project` for the tokens behind.
            rows: number of first tokens to return; all by default.
            hidden: first tokens that attend to all, while the others do not attend to them.
            train: turns dropout on.

        Returns:
            ``[B, rows, M]``, of the first tokens alone; without ``rows``, of all.
        """
        shape = (*x.shape[:-1], 3 * self.width)
        masked = train and self.dropout > 0.0
        all_alike = known is None and rows is None and not hidden
        packed = functools.partial(takes_packed, self.attention, shape, self.dtype, self.num_heads)
        if all_alike and packed(window=0, masked=masked):
            return self._packed(x, train=train)
        return self.mix(*self.joined(x, known), rows=rows, hidden=hidden, train=train)

    def _packed(self, x: Array, *, train: bool) -> Array:
        """Attends among the tokens of ``x`` ``[B, S, M]`` alone, whose q, k and v are one array."""
        y, bias = self.qkv.together(x)
        batch, length, _ = x.shape
        shape = (batch, self.num_heads, length, length)
        scale = (self.width // self.num_heads) ** -0.5
        parts = bias.reshape(3, self.width)[::2]  # of queries and values: [2, M]

        def apart(y: Array, parts: Array, kept: Array | None) -> Array:
            of_query, of_value = parts
            all_three = jnp.concatenate([of_query, jnp.zeros_like(of_query), of_value])
            query, key, value, value_bias = split_qkv(y, all_three, self.num_heads)
            options = {"scale": scale, "kept": kept, "rate": self.dropout, "forms": self.attention}
            return attend(query, key, value + value_bias, **options).reshape(x.shape)

        out = attend_packed(
            apart,
            y,
            parts,
            self.drop.mask(shape, deterministic=not train),
            num_heads=self.num_heads,
            scale=scale,
            rate=self.dropout,
            forms=self.attention,
        )
        return self.proj(checkpoint_name(out, Kept.ATTENDED))

    def joined(self, x: Array, known: QKV | None = None) -> QKV:
        """Projects ``x`` ``[B, S, M]``, and puts the ``known`` tokens behind: ``[B, S + S']``."""
        projected = self.project(x)  # [B, S, K, E]
        if known is None:
            return projected
        query, key, value = (
            jnp.concatenate(pair, axis=1) for pair in zip(projected, known, strict=True)
        )
        return query, key, value

    def mix(
        self,
        query: Array,
        key: Array,
        value: Array,
        *,
        rows: int | None = None,
        hidden: int = 0,
        train: bool = False,
    ) -> Array:
        """Does the rest of `__call__`: attends, and projects to ``[B, rows, M]``."""
        query = query[:, :rows]
        if hidden:
            # Two products in place of a mask: what is hidden costs nothing.
            first = self._attended(query[:, :hidden], key, value, train=train)
            others = (array[:, hidden:] for array in (query, key, value))
            out = jnp.concatenate([first, self._attended(*others, train=train)], axis=1)
        else:
            out = self._attended(query, key, value, train=train)
        return self.proj(checkpoint_name(out, Kept.ATTENDED))

    def _attended(self, query: Array, key: Array, value: Array, *, train: bool) -> Array:
        """Returns the means of values, ``[B, rows, K, E]`` -> ``[B, rows, M]``."""
        kept = self.drop.mask(weights_shape(query, key), deterministic=not train)
        scale = query.shape[-1] ** -0.5
        out = attend(
            query, key, value, scale=scale, kept=kept, rate=self.dropout, forms=self.attention
        )
        return out.reshape(*out.shape[:2], self.width)


class Mlp(nn.Module):
    """fc1, activation, dropout, fc2, dropout; the output is as wide as the input."""

    hidden: int
    activation: Callable[[Array], Array]
    hidden_dropout: float = 0.0
    output_dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """``[..., M] -> [..., M]``."""
        # [..., M] -> [..., hidden] -> [..., M]
        y = checkpoint_name(Dense(self.hidden, dtype=self.dtype, name="fc1")(x), Kept.HIDDEN)
        y = self.activation(y)
        y = Dropout(self.hidden_dropout, deterministic=not train)(y)
        y = Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y)
        return Dropout(self.output_dropout, deterministic=not train)(y)


def stacked(block: type[nn.Module], length: int, *, remat: str) -> Callable[..., nn.Module]:
    """Runs ``length`` copies of a block in one scan, with parameters stacked on a leading axis.

    The block's call takes ``(x, train)`` and returns ``(x, None)``, and so does the stack's.
    ``remat`` names a row of `REMAT`.
    """
    return nn.scan(
        rematerialised(block, remat, scanned=True),
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType] Flax: "=0", no annotation
        length=length,
    )


def _domain_table_init(key: Array, shape: tuple[int, int, int], dtype: Any = jnp.float32) -> Array:
    """Xavier-uniform of the table seen as one ``[domains, in * out]`` matrix, as in X-VLA."""
    domains, fan_in, fan_out = shape
    bound = (6.0 / (domains + fan_in * fan_out)) ** 0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class DomainLinear(nn.Module):
    """Linear layer whose weights are looked up by domain.

    The kernel is ``[domains, in, out]``, the bias ``[domains, out]``. Callers check that
    ``domain_id`` is in range: a gather on the device clamps silently.
    """

    features: int
    num_domains: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, domain_id: Array) -> Array:
        """``[B, S, in]``, ``[B]`` -> ``[B, S, out]``."""
        shape = (self.num_domains, x.shape[-1], self.features)
        kernel = self.param("kernel", _domain_table_init, shape)[domain_id]  # [B, in, out]
        shape = (self.num_domains, self.features)
        bias = self.param("bias", nn.initializers.zeros, shape)[domain_id]  # [B, out]
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        return x @ kernel + bias[:, None]  # [B, S, in] @ [B, in, out]


def time_embedding(t: Array, width: int) -> Array:
    """Embeds flow times ``[...]`` in [0, 1] as ``[..., width]``: cosines, then sines.

    Periods go up to 100. An odd width ends in 0.
    """
    # Geometric from 1 down to almost 1 / 100.
    half = width // 2
    frequencies = 100.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[..., None] * frequencies  # [..., half]
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, [(0, 0)] * t.ndim + [(0, width % 2)])
