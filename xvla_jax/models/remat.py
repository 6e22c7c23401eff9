"""What the backward pass keeps of a block's forward pass, and what it computes again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
from flax import linen as nn

from xvla_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class RematPolicy:
    """A row of `REMAT`.

    Attributes:
        recompute: whether blocks are wrapped at all.
        saveable: what is kept inside a wrapped block, as ``jax.checkpoint`` takes it; None keeps
            nothing but the block's input.
    """

    recompute: bool
    saveable: Callable[..., Any] | None = None


# From most memory and least time to least memory and most time.
REMAT: Final[Mapping[str, RematPolicy]] = {
    "none": RematPolicy(recompute=False),
    # Products with weights are kept; attention, norms and activations are computed again.
    "dots": RematPolicy(True, jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
    "full": RematPolicy(True),
}


def remat_policy(name: str) -> RematPolicy:
    """The row of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in REMAT:
        raise ConfigError(f"config.remat is {name!r}; allowed are {', '.join(REMAT)}")
    return REMAT[name]


def rematerialised(block: type[nn.Module], name: str, *, scanned: bool) -> type[nn.Module]:
    """The block under a policy; its call takes ``(x, train)``, ``train`` by position.

    A scan already keeps the compiler from merging both computations, so only blocks outside of
    one pay for the barriers that do.
    """
    policy = remat_policy(name)
    if not policy.recompute:
        return block
    return nn.remat(block, static_argnums=(2,), policy=policy.saveable, prevent_cse=not scanned)


def rematerialised_function(block: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A function of arrays alone, called in a scan, under a policy."""
    policy = remat_policy(name)
    if not policy.recompute:
        return block
    return jax.checkpoint(block, policy=policy.saveable, prevent_cse=False)
