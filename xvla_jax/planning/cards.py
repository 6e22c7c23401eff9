"""Memory of a run on one GPU or on this machine's cores, from the train step compiled for a CPU.

No GPU is needed. The CPU's compiler computes bfloat16 products in float32 and fuses less, so its
peak is an upper estimate of a GPU's; the state, which is most of a full fine-tune, is exact.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import jax

from xvla_jax.errors import ConfigError
from xvla_jax.lora import LoraConfig
from xvla_jax.models.kernels import check_attention
from xvla_jax.planning.chips import GIB
from xvla_jax.planning.programs import Memory, Run, bytes_of, compile_program
from xvla_jax.planning.report import neighbours

CPU: Final = "cpu"
GPU: Final = "gpu"
# GiB on the card, by the name after "gpu:"; "gpu" is all of them
CARDS: Final[Mapping[str, int]] = {"24": 24, "48": 48, "80": 80}
# JAX takes this share of a GPU at its start; XLA_PYTHON_CLIENT_MEM_FRACTION asks for another
TAKEN: Final = 0.75
MOST: Final = 0.95  # what is left to the driver and to libraries


@dataclasses.dataclass(frozen=True)
class Card:
    """Memory to train in: of a GPU, or of this machine."""

    name: str
    bytes: float

    @property
    def usable(self) -> float:
        """Bytes that a program may take at most."""
        return MOST * self.bytes

    def advice(self, peak: int) -> str:
        """Returns the variable to set where JAX would take too little of a GPU; else empty."""
        plain = self.name == CPU or peak <= TAKEN * self.bytes
        return "" if plain else f"XLA_PYTHON_CLIENT_MEM_FRACTION={MOST}"


def cards(name: str) -> tuple[Card, ...] | None:
    """Returns the cards of a topology ``cpu``, ``gpu`` or ``gpu:24``; None for other kinds.

    Raises:
        ConfigError: a card without a row.
    """
    kind, _, size = name.partition(":")
    if kind == CPU and not size:
        return (Card(CPU, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),)
    if kind != GPU:
        return None
    if size and size not in CARDS:
        raise ConfigError(
            f"topology {name!r} is not known; write gpu for all cards, or one of "
            f"{', '.join(f'gpu:{card}' for card in CARDS)} (GiB; rows of "
            "xvla_jax.planning.cards.CARDS)"
        )
    return tuple(Card(f"gpu:{card}", CARDS[card] * GIB) for card in ([size] if size else CARDS))


def compiled_memory(run: Run) -> Memory:
    """Compiles the train step of a run for one CPU device and returns its memory."""
    return compile_program(run.lower_step(run.mesh(jax.devices(CPU)[:1]))).memory


def card_plans(
    run: Run,
    chosen: Sequence[Card],
    *,
    measure: Callable[[Run], Memory] = compiled_memory,
    say: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> list[dict[str, Any]]:
    """Answers for each card whether a run fits, and if not what would.

    The program is the same for all cards, so each candidate is compiled once.

    Args:
        run: the experiment, on one device.
        chosen: cards.
        measure: memory of a run.
        say: called before each compilation, as that takes minutes.

    Returns:
        Plain values: card, limit, state, memory, fits, advice, and where it does not fit nearest
        (flags, its peak, accumulation), None where nothing was found.

    Raises:
        ConfigError: the run's attention is not for such a card.
    """
    known: list[tuple[Run, Memory]] = []

    def memory(candidate: Run) -> Memory:
        for other, size in known:
            if other == candidate:
                return size
        say(f"compiling batch {candidate.batch_size}, remat {candidate.remat} for a CPU")
        known.append((candidate, measure(candidate)))
        return known[-1][1]

    check_attention(run.attention, chosen[0].name.partition(":")[0])
    needed = memory(run)
    plans = []
    for card in chosen:
        plan: dict[str, Any] = {
            "card": card.name,
            "limit": card.usable,
            "state": bytes_of(run.state(run.mesh(jax.devices(CPU)[:1]))),
            "batch_size": run.batch_size,
            "memory": dataclasses.asdict(needed) | {"peak": needed.peak},
            "fits": needed.peak <= card.usable,
            "advice": card.advice(needed.peak),
        }
        if not plan["fits"]:
            candidates = ((c, r, memory(r).peak) for c, r in smaller(run))
            fit = next((item for item in candidates if item[2] <= card.usable), None)
            plan["nearest"] = fit and {
                "change": fit[0],
                "peak": fit[2],
                "accumulation": run.batch_size // fit[1].batch_size,
            }
        plans.append(plan)
    return plans


def smaller(run: Run) -> Iterator[tuple[str, Run]]:
    """Yields runs that need less memory, as flags and runs: remat, batch, then an adapter.

    An adapter trains less, so it comes last; it needs a checkpoint as ``config.init_from``.
    """
    yield from neighbours(run, devices=1)
    if run.lora is None:
        adapter = dataclasses.replace(run, lora=LoraConfig(rank=8), remat="full")
        yield "--config.lora.rank=8 --config.remat=full", adapter
        for change, candidate in neighbours(adapter, devices=1):
            yield f"--config.lora.rank=8 {change}", candidate
