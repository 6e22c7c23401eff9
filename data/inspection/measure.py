"""One pass over a trajectory: the numbers that the checks judge."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from data.faults import BadEpisodeError
from data.inspection import geometry
from data.inspection.channels import channel_names, channels, even_places
from data.inspection.geometry import GRIPPER
from data.inspection.grippers import gripper_report
from data.inspection.movement import movement
from data.inspection.reports import (
    Channels,
    ClockReport,
    EpisodeReport,
    HandReport,
    TextReport,
)
from data.inspection.views import NOTHING_SEEN, PICTURES, equal_views, look
from data.spec import DatasetSpec
from data.stream.windows import candidate_frames, episode_samples, interpolate, judged_rows
from data.trajectory import Trajectory

Float64 = NDArray[np.float64]

KEPT_ROWS = 32  # of an episode, for quantiles
KEPT_SAMPLES = 8  # of an episode
KEPT_TARGETS = 4  # of a sample's actions
PATH_POINTS = 16
# faster than this between two frames is no hand, whatever the rate
HAND_SPEED = 3.0  # m/s
HAND_TURN = math.radians(360)  # rad/s
SMALL_STEP = 0.10  # m: at high rates, single frames may be late
SMALL_TURN = math.radians(20)
WIDE_TURN = math.radians(120)  # at low rates; no two rotations are more than 180 degrees apart
JOINT_STEP = 5.0  # rad between two frames: a turn by 2 pi that was wrapped, whatever the rate
# what counts as visible movement away from the first or the last frame
VISIBLE_M = 0.002
VISIBLE_RAD = math.radians(1)
VISIBLE_GRIPPER = 0.05
VISIBLE_JOINT = 0.01


def measure(
    trajectory: Trajectory, spec: DatasetSpec, num_actions: int, images: int = PICTURES
) -> EpisodeReport:
    """The report of one episode; decodes up to `images` images of each view, 0: all of them."""
    move = movement(trajectory, spec)
    hands, rotations = move.hands, move.rotations
    columns = geometry.rotation_columns(hands, spec)
    way = np.linalg.norm(np.diff(hands[..., :3], axis=1), axis=-1)
    turn = geometry.angles(rotations[:, 1:], rotations[:, :-1])
    width = len(channel_names(spec))
    samples = episode_samples(trajectory, spec, num_actions)
    seen = look(trajectory, samples, spec, move, images)
    fault = seen if isinstance(seen, BadEpisodeError) else None
    if isinstance(seen, BadEpisodeError):
        seen = NOTHING_SEEN
    moved = np.abs(np.diff(judged_rows(trajectory), axis=0)).max(axis=1, initial=0.0)
    joint_steps = np.abs(np.diff(trajectory.poses[:, : width if spec.joints else 0], axis=0))
    away = [_visible(hands, rotations, trajectory.poses, frame) for frame in (0, -1)]
    return EpisodeReport(
        episode=trajectory.episode,
        texts=_texts(trajectory),
        num_frames=len(trajectory.poses),
        candidates=len(candidate_frames(trajectory, spec)),
        samples=len(samples),
        still_steps=int((moved < spec.static_epsilon).sum()),
        idle_head=_leading(~away[0]),
        idle_tail=_leading(~away[1][::-1]),
        hands=tuple(
            _hand(hands[i], columns[i], rotations[i], way[i], turn[i], spec.rate_hz)
            for i in range(len(hands))
        ),
        joint_jumps=int((joint_steps > JOINT_STEP).any(axis=1).sum()),
        longest_joint_step=float(joint_steps.max(initial=0.0)),
        clock=None if trajectory.clocks is None else _clock(trajectory.clocks),
        views=seen.reports,
        equal_views=equal_views(seen.shown),
        picture_fault=fault,
        poses=channels(trajectory.poses[:, :width], KEPT_ROWS),
        targets=_targets(samples.actions[..., :width]),
        steps=_some(way),
        digest=hashlib.blake2b(trajectory.poses.tobytes(), digest_size=16).digest(),
        path=_path(trajectory.poses[:, :width]),
    )


def _texts(trajectory: Trajectory) -> tuple[TextReport, ...]:
    """The texts in the order in which they first come."""
    found, frames = trajectory.texts, len(trajectory.poses)
    if found is None:
        return (TextReport(trajectory.instruction, frames, len(trajectory.paraphrases)),)
    counts = np.bincount(found.places, minlength=len(found.texts)).tolist()
    rows = zip(found.texts, counts, found.paraphrases, strict=True)
    return tuple(TextReport(text, count, len(others)) for text, count, others in rows)


def _hand(
    hand: Float64, columns: Float64, rotations: Float64, way: Float64, turn: Float64, rate: float
) -> HandReport:
    furthest = max(SMALL_STEP, HAND_SPEED / rate)
    widest = min(max(SMALL_TURN, HAND_TURN / rate), WIDE_TURN)
    return HandReport(
        position_jumps=int((way > furthest).sum()),
        rotation_jumps=int((turn > widest).sum()),
        longest_step=float(way.max(initial=0.0)),
        widest_turn=float(turn.max(initial=0.0)),
        skew=float(geometry.skew(columns).max()),
        turned=float(geometry.angles(rotations, rotations[:1]).max()),
        gripper=gripper_report(hand[:, GRIPPER], hand[:, 2]),
    )


def _visible(hands: Float64, rotations: Float64, poses: Float64, frame: int) -> NDArray[np.bool_]:
    """Which frames differ visibly from frame number `frame`: [T]."""
    if not len(hands):
        return np.abs(poses - poses[frame]).max(axis=1) > VISIBLE_JOINT
    there = hands[:, frame][:, None]
    moved = np.linalg.norm(hands[..., :3] - there[..., :3], axis=-1) > VISIBLE_M
    gripped = np.abs(hands[..., GRIPPER] - there[..., GRIPPER]) > VISIBLE_GRIPPER
    turned = geometry.angles(rotations, rotations[:, frame][:, None]) > VISIBLE_RAD
    return (moved | gripped | turned).any(axis=0)


def _leading(flags: NDArray[np.bool_]) -> int:
    return len(flags) if flags.all() else int(np.argmin(flags))


def _clock(clocks: Float64) -> ClockReport:
    steps = np.diff(clocks, axis=1)
    if not steps.size:
        return ClockReport(math.nan, 0.0, 0.0)
    middle = np.median(steps, axis=1, keepdims=True)
    apart = clocks.max(axis=0) - clocks.min(axis=0)
    return ClockReport(
        rate_hz=float(steps.shape[1] / (clocks[:, -1] - clocks[:, 0]).mean()),
        jitter=float(np.quantile(np.abs(steps - middle) / middle, 0.99)),
        drift_s=float(np.abs(apart - apart[0]).max()),
    )


def _targets(actions: NDArray[np.float32]) -> Channels | None:
    """Of the actions [n, T, D] of all samples."""
    if not len(actions):
        return None
    flat = actions.reshape(-1, actions.shape[-1])
    chosen = actions[even_places(len(actions), KEPT_SAMPLES)]
    chosen = chosen[:, even_places(actions.shape[1], KEPT_TARGETS)]
    return Channels(flat.min(axis=0), flat.max(axis=0), chosen.reshape(-1, flat.shape[-1]))


def _some(way: Float64) -> NDArray[np.float32]:
    flat = way.reshape(-1)
    return flat[even_places(len(flat), KEPT_ROWS) if len(flat) else []].astype(np.float32)


def _path(rows: Float64) -> NDArray[np.float32]:
    return interpolate(rows, np.linspace(0, len(rows) - 1, PATH_POINTS)[None])[0]
