"""Policies of rematerialisation: what the backward pass keeps, and what it computes again."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any, Final

import jax
from flax import linen as nn

from xvla_jax.errors import ConfigError


class Kept(enum.StrEnum):
    """Names of values that a policy may keep, as blocks give them with ``checkpoint_name``."""

    PROJECTED = "projected"  # products that yield queries, keys and values, before their bias
    ATTENDED = "attended"  # result of attention, before its output projection
    BETWEEN = "between"  # a block's input plus its attention branch
    HIDDEN = "hidden"  # input of an MLP's activation
    WEIGHTS = "weights"  # of attention, before dropout
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
    # Values with a name of `Kept`, and nothing else. Masks are kept, as drawing them again takes
    # longer than reading them.
    "weights": RematPolicy(True, jax.checkpoint_policies.save_only_these_names(*Kept)),
    # Likewise, but attention computes its weights again: in bfloat16 a third of "none".
    "named": RematPolicy(
        True, jax.checkpoint_policies.save_only_these_names(*(set(Kept) - {Kept.WEIGHTS}))
    ),
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
