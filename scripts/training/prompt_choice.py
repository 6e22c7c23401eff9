"""The domain of a checkpoint that a new robot begins with best: by its conventions, or by its data.

Each trained domain is compared with the data's row, by conventions, reach and speed; and its prompt
is judged on the recording (`xvla_jax.checkpoint_tools.prompt_fit`), beside fresh ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from data.rows.contracts import actions_of, contracts_of
from data.rows.domains import resolve_domains
from data.rows.robots import ROBOT_FACTS
from data.rows.table import DATASETS
from data.sources import SomeEpisodes, evenly_spread, hold_out
from data.spec import DatasetSpec
from data.stream.pipeline import one_pass
from data.trajectory import Source
from xvla_jax.actions import AUTO, JOINTS, POSES, action_kind, action_space, misfit
from xvla_jax.checkpoint_tools.domains import Domain, agreement, octaves, survey
from xvla_jax.checkpoint_tools.extension import grown
from xvla_jax.checkpoint_tools.prompt_fit import unexplained
from xvla_jax.checkpoints.relabel import relabelled
from xvla_jax.contract import Contract
from xvla_jax.errors import CheckpointError, ConfigError
from xvla_jax.models.xvla import XVLA
from xvla_jax.pretrained import Pretrained
from xvla_jax.processor import Processor

LOSS, CONVENTIONS = "loss", "conventions"  # by which of them is chosen
_FRESH = 3  # draws of a fresh prompt, for comparison
_STRIDE = 5  # every so many samples of an episode
_BATCH = 16
_UNKNOWN_APART = 1.0  # octaves, of a reach or speed that one of the two does not state
_MODES = {POSES: "ee6d", JOINTS: AUTO}  # action space of data that are not the checkpoint's kind


@dataclasses.dataclass(frozen=True)
class Motion:
    """Reach (m, from the origin of the poses) and speed (m/s) of a tool; None where not known."""

    reach: float | None = None
    speed: float | None = None


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A trained domain beside a new robot's data.

    Attributes:
        domain_id: row of the tables.
        name: empty if it has none.
        agrees: conventions that are the same; None where the checkpoint has no contract of it.
        rate_hz: of its actions; None likewise.
        motion: what the maker states of its robot.
        unexplained: see `prompt_fit.unexplained`.
        order: sorts by conventions, rate and motion; the nearest is the largest.
    """

    domain_id: int
    name: str
    agrees: Mapping[str, bool] | None
    rate_hz: float | None
    motion: Motion
    unexplained: float
    order: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Choice:
    """All candidates, and how fresh prompts do on the same data.

    Attributes:
        row: name of the data's row.
        motion: of the new robot; of joints it is not known.
        candidates: by domain id.
        fresh: the unexplained share with fresh prompts and projections.
    """

    row: str
    motion: Motion
    candidates: tuple[Candidate, ...]
    fresh: tuple[float, ...]

    def nearest(self, by: str) -> Candidate:
        """Returns the best candidate, by `LOSS` or by `CONVENTIONS`."""
        if by == LOSS:
            return min(self.candidates, key=lambda one: (one.unexplained, one.domain_id))
        return max(self.candidates, key=lambda one: (one.order, -one.domain_id))

    def to_dict(self, by: str) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {**dataclasses.asdict(self), "by": by, "nearest": self.nearest(by).domain_id}


def choose(loaded: Pretrained, source: Source, *, episodes: int, seed: int) -> Choice:
    """Compares every trained domain of a checkpoint with a new robot's data.

    Args:
        loaded: the checkpoint, with its weights.
        source: the new robot's recording.
        episodes: how many of it are read, half of them held out of the fit; 2 or more.
        seed: of fresh rows, noise and flow times.

    Raises:
        CheckpointError: no domain is trained.
        ConfigError: the actions do not fit the checkpoint's head, or there are too few episodes.
    """
    spec = source.reader.spec
    trained = [domain for domain in survey(loaded) if domain.trained]
    if not trained:
        raise CheckpointError(
            "no domain of this checkpoint is trained, so none is near; begin with "
            "config.new_domains = 'NAME=fresh'"
        )
    first = loaded.config.num_domains
    fitting, processor = _fitting(grown(loaded, first + _FRESH, seed=seed), spec)
    contract = _contract(spec, fitting)
    parts = list(_parts(fitting, processor, source, episodes))
    shares = unexplained(
        XVLA(fitting.config),
        fitting.params,
        processor,
        parts,
        domain_ids=[*(domain.domain_id for domain in trained), *range(first, first + _FRESH)],
        batch_size=_BATCH,
        seed=seed,
    )
    motion = recorded_motion(spec, contract, [batch["actions"] for batch, _ in parts])
    candidates = (candidate(d, contract, motion, shares[d.domain_id]) for d in trained)
    fresh = tuple(shares[first + i] for i in range(_FRESH))
    return Choice(spec.name, motion, tuple(candidates), fresh)


def choice_table(choice: Choice) -> Table:
    """Returns a table with a line for each candidate, then the new robot and fresh prompts."""
    table = Table("domain", "name", "same conventions", title=f"domains for {choice.row}")
    for heading in ("rate, Hz", "reach, m", "speed, m/s", "unexplained"):
        table.add_column(heading, justify="right")
    for one in choice.candidates:
        same = [name for name, agrees in (one.agrees or {}).items() if agrees]
        table.add_row(
            str(one.domain_id),
            one.name,
            "?" if one.agrees is None else ", ".join(same) or "none",
            _text(one.rate_hz),
            _text(one.motion.reach),
            _text(one.motion.speed),
            f"{one.unexplained:.1%}",
        )
    table.add_section()
    table.add_row("", "the data", "", "", _text(choice.motion.reach), _text(choice.motion.speed))
    low, high = min(choice.fresh), max(choice.fresh)
    table.add_row("", f"fresh, {_FRESH} draws", *[""] * 4, f"{low:.1%} to {high:.1%}")
    return table


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _fitting(loaded: Pretrained, spec: DatasetSpec) -> tuple[Pretrained, Processor]:
    """Returns the checkpoint in an action space that has the data's channels, and its processor."""
    if loaded.processor is None:
        raise ConfigError(
            "the checkpoint has no preprocessor_config.json; image size and text length belong to "
            "the weights"
        )
    kind = JOINTS if spec.joints else POSES
    mode = loaded.config.action_mode
    mode = mode if action_kind(mode) == kind else _MODES[kind]
    fitting = relabelled(loaded, mode, spec.width if mode == AUTO else 0)
    space = action_space(fitting.config)
    problem = misfit(space.mode, space.real_width, **actions_of(spec))
    if problem:
        raise ConfigError(f"dataset {spec.name!r} has {problem} ({spec.written_in})")
    # contracts are compared as stored; relabelling drops them
    return dataclasses.replace(fitting, contracts=loaded.contracts), loaded.processor


def _contract(spec: DatasetSpec, loaded: Pretrained) -> Contract:
    (fields,) = contracts_of(
        [spec], num_actions=loaded.config.num_actions, domains=resolve_domains([spec])
    )
    return Contract(action_space=action_space(loaded.config).mode, **fields)


def _parts(
    loaded: Pretrained, processor: Processor, source: Source, episodes: int
) -> Iterator[tuple[Mapping[str, np.ndarray], bool]]:
    """Yields batches of some episodes: those to fit, then as many that are held out."""
    total = sum(source.reader.episodes_per_part)
    count = min(episodes, total)
    if count < 2:
        raise ConfigError(
            f"{count} of {total} episodes of {source.reader.spec.name!r} would be read "
            "(--episodes); 2 or more are needed, to fit on one half and measure on the other"
        )
    some = dataclasses.replace(
        source, reader=SomeEpisodes(source.reader, evenly_spread(count, total))
    )
    for held, part in enumerate(hold_out(some, count // 2)):
        for batch in one_pass(
            [part],
            batch_size=_BATCH,
            num_actions=loaded.config.num_actions,
            action_width=action_space(loaded.config).width,
            num_views=processor.num_views,
            image_size=processor.image_size,
            tokenize=processor.tokenize,
            fit=processor.training_fit,
            stride=_STRIDE,
            domains=resolve_domains([source.reader.spec]),
        ):
            yield {k: v for k, v in batch.items() if "jitter" not in k}, bool(held)


def recorded_motion(spec: DatasetSpec, contract: Contract, chunks: Sequence[np.ndarray]) -> Motion:
    """Returns how far and how fast the first arm moves, but for the last percent of samples."""
    if spec.joints or {0, 1, 2} & set(spec.delta_idx):
        return Motion()
    places = np.concatenate([chunk[..., :3] for chunk in chunks])  # [N, T, xyz]
    steps = np.linalg.norm(np.diff(places, axis=1), axis=-1)
    return Motion(
        float(np.quantile(np.linalg.norm(places, axis=-1), 0.99)),
        float(np.quantile(steps, 0.99)) * contract.anchor_hz,
    )


def _stated_motion(domain: str) -> Motion:
    """Returns what the maker states of the robot of a domain's rows."""
    robots = {row.robot for row in DATASETS.values() if row.robot and row.domain == domain}
    facts = ROBOT_FACTS[robots.pop()] if len(robots) == 1 else None
    return Motion(facts.reach, facts.speed) if facts else Motion()


def candidate(domain: Domain, contract: Contract, motion: Motion, share: float) -> Candidate:
    """Returns a domain beside the contract and the motion of the data."""
    known, stated = domain.contract, _stated_motion(domain.name)
    agrees = agreement(known, contract) if known else None
    pairs = ((stated.reach, motion.reach), (stated.speed, motion.speed))
    apart = sum(abs(math.log2(a / b)) if a and b else _UNKNOWN_APART for a, b in pairs)
    order = (
        (*map(float, agrees.values()), -octaves(known, contract), -apart)
        if known and agrees
        else (-1.0,)
    )
    return Candidate(
        domain.domain_id,
        domain.name,
        agrees,
        known.anchor_hz if known else None,
        stated,
        share,
        order,
    )
