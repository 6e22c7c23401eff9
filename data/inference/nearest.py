"""Released domains that are nearest to a recording, by arms, rate, views, reach and speed.

Evidence for a person who copies a soft prompt; nothing takes it for the identity of the robot.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from data.inference.cameras import CARRIED, movement
from data.inference.choices import Choices
from data.inference.columns import POSES, arms_of
from data.inference.recording import Recording
from data.inference.rotations import SCALES
from data.rows.domains import DomainFacts, domain_facts
from data.rows.robots import ROBOT_FACTS, RobotFacts

SHOWN = 3
OTHER_ARMS = 4.0  # distance of another number of arms
UNKNOWN = 0.5  # of what a domain does not state
OF_A_VIEW = 0.5
WORKS_FROM = 0.4  # share of its reach that an arm at a table uses, at least
FASTEST = 0.99  # quantile of the speed


@dataclass(frozen=True)
class Statistics:
    """Statistics of a recording by which domains are compared.

    Attributes:
        arms: number of arms.
        rate_hz: frames a second; None: not known yet.
        views: number of cameras.
        carried: of them, those that an arm carries.
        reach: m, farthest position from the base; None: joints.
        speed: m/s of the hand, nearly the fastest; None: joints, or no rate.
    """

    arms: int
    rate_hz: float | None
    views: int
    carried: int
    reach: float | None = None
    speed: float | None = None


@dataclass(frozen=True)
class Near:
    """A domain, its distance, and what it is made of."""

    domain: str
    distance: float
    evidence: str


def statistics(recording: Recording, choices: Choices) -> Statistics:
    """Statistics of a recording whose choices of shape are known."""
    moves = movement(recording)
    rate = choices["rate_hz"].value
    hertz = float(rate) if rate else recording.rate_hz
    reach = speed = None
    arms = 2 if "arm_order" in choices else 1
    if choices["kind"].value == POSES:
        scale = SCALES[choices["position_unit"].value]
        places = [
            scale * rows[:, list(arm.position)]
            for arm in arms_of(recording, choices)
            for rows in recording.episodes(choices["state_key"].value)
        ]
        reach = max(float(np.linalg.norm(rows, axis=1).max()) for rows in places)
        steps = np.concatenate([np.linalg.norm(np.diff(r, axis=0), axis=1) for r in places])
        speed = float(np.quantile(steps, FASTEST)) * hertz if hertz else None
    carried = sum(share >= CARRIED for share in moves.values())
    return Statistics(arms, hertz, len(moves), carried, reach, speed)


def nearest_domains(seen: Statistics, count: int = SHOWN) -> list[Near]:
    """The released domains that are nearest, the nearest first."""
    return sorted((_near(seen, facts) for facts in domain_facts()), key=lambda n: n.distance)[
        :count
    ]


def _near(seen: Statistics, facts: DomainFacts) -> Near:
    parts: list[tuple[float, str]] = [
        (0.0 if seen.arms == facts.arms else OTHER_ARMS, f"{facts.arms} arms, here {seen.arms}")
    ]
    if seen.rate_hz:
        text = f"{facts.rate_hz:g} Hz, here {seen.rate_hz:g}"
        parts.append((abs(math.log2(facts.rate_hz / seen.rate_hz)), text))
    if facts.views is None:
        parts.append((UNKNOWN, "views not stated"))
    else:
        text = f"{facts.views} views, here {seen.views}"
        parts.append((OF_A_VIEW * abs(facts.views - seen.views), text))
    robot = ROBOT_FACTS.get(facts.robot)
    if seen.reach is not None:
        parts += _of_robot(seen, robot)
    distance = sum(part for part, _ in parts)
    return Near(facts.domain, distance, "; ".join(text for _, text in parts))


def _of_robot(seen: Statistics, robot: RobotFacts | None) -> list[tuple[float, str]]:
    """Distances of reach and speed from what the arm can do."""
    name = robot.called if robot else "its robot"
    parts = []
    far, fast = seen.reach or 0.0, seen.speed
    if robot is None or robot.reach is None:
        parts.append((UNKNOWN, f"reach of {name} not known, here {far:.2f} m"))
    else:
        share = far / (robot.reach + robot.tool)
        text = f"{name} reaches {robot.reach + robot.tool:.2f} m, here {far:.2f}"
        parts.append((_beyond(share), text))
    if fast is not None:
        if robot is None or robot.speed is None:
            parts.append((UNKNOWN, f"speed not known, here {fast:.2f} m/s"))
        else:
            text = f"up to {robot.speed:g} m/s, here {fast:.2f}"
            parts.append((max(0.0, math.log2(max(fast, 1e-6) / robot.speed)), text))
    return parts


def _beyond(share: float) -> float:
    """Octaves by which a share of the reach lies outside of what an arm at a table uses."""
    return max(0.0, math.log2(max(share, 1e-6)), math.log2(WORKS_FROM / max(share, 1e-6)))
