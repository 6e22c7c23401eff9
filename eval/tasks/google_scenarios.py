"""Scenes of SimplerEnv's Google robot, as the authors' scripts list them, generated from tables.

`visual` matching overlays photographs on one scene, `variant` aggregation varies the scene. Robot
poses are x, y (m) and a quaternion wxyz.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Sequence

from eval.tasks.spec import Scenario

_BASE: dict[str, Any] = {
    "robot": "google_robot_static",
    "sim_freq": 513,
    "control_freq": 3,
    "control_mode": "arm_pd_ee_base_pose_align_interpolate_by_planner_gripper_pd_joint_target_"
    "delta_pos_interpolate_by_planner",
    "camera_cfgs": {"add_segmentation": True},
}
_TABLE = "google_pick_coke_can_1_v4"
_CABINETS = tuple(f"Baked_sc1_staging_objaverse_cabinet{n}_h870" for n in (1, 2))
_BACKGROUNDS = (f"{_TABLE}_alt_background", f"{_TABLE}_alt_background_2")
_ORIENTATIONS = ("lr_switch", "upright", "laid_vertically")
_TABLETOP_1, _TABLETOP_2 = (f"recolor_tabletop_visual_matching_{n}" for n in (1, 2))
_CABINET = "recolor_cabinet_visual_matching_1"
# None: the key is left out, which means the default colours.
_URDFS = (None, _TABLETOP_1, _TABLETOP_2, _CABINET)
_DRAWER_URDFS = (_CABINET, _TABLETOP_1, _TABLETOP_2, None)
_DRAWERS = tuple(
    f"{verb}{place}DrawerCustomInScene-v0"
    for verb in ("Open", "Close")
    for place in ("Top", "Middle", "Bottom")
)
_PLACE_IN = "PlaceIntoClosedTopDrawerCustomInScene-v0"
_RAY_TRACED = {"shader_dir": "rt"}
_VM_DRAWER: dict[str, Any] = {
    **_RAY_TRACED,
    "scene_name": "dummy_drawer",
    "light_mode": "simple",
    "disable_bad_material": True,
    "station_name": "mk_station_recolor",
}
# photograph -> where the robot stood: x, y, yaw
_OVERLAYS: dict[str, tuple[float, float, float]] = {
    "a0": (0.644, -0.179, -0.03),
    "a1": (0.765, -0.182, -0.02),
    "a2": (0.889, -0.203, -0.06),
    "b0": (0.652, 0.009, 0.0),
    "b1": (0.752, 0.009, 0.0),
    "b2": (0.851, 0.035, 0.0),
    "c0": (0.665, 0.224, 0.0),
    "c1": (0.765, 0.222, -0.025),
    "c2": (0.865, 0.222, -0.025),
}
_ROOMS = ("frl_apartment_stage_simple", "modern_bedroom_no_roof", "modern_office_no_roof")
_VA_DRAWER: tuple[dict[str, Any], ...] = (
    *({"scene_name": room} for room in _ROOMS),
    {"scene_name": _ROOMS[0], "light_mode": "brighter"},
    {"scene_name": _ROOMS[0], "light_mode": "darker"},
    {"scene_name": _ROOMS[0], "station_name": "mk_station2"},
    {"scene_name": _ROOMS[0], "station_name": "mk_station3"},
)
_PREFIX = "google_robot_"


def robot_pose(x: float, y: float, yaw: float) -> tuple[float, ...]:
    """x, y and the quaternion wxyz of a turn by yaw after a half turn about z."""
    return (x, y, -math.sin(yaw / 2), 0.0, 0.0, math.cos(yaw / 2))


def linspace(first: float, last: float, count: int) -> list[float]:
    """`count` points, both ends included."""
    return [first + (last - first) * k / (count - 1) for k in range(count)]


def _grid(xs: Sequence[float], ys: Sequence[float]) -> tuple[tuple[str, Any], ...]:
    return tuple(("init_xy", (x, y)) for x, y in itertools.product(xs, ys))


_CANS = _grid(linspace(-0.35, -0.12, 5), linspace(-0.02, 0.42, 5))
_NEAR = tuple(("episode_id", k) for k in range(60))
_AT_ORIGIN = (("init_xy", (0.0, 0.0)),)
_APPLES = _grid(linspace(-0.08, -0.02, 3), linspace(-0.02, 0.08, 3))
_CAN_ROBOT = (robot_pose(0.35, 0.20, 0.0),)
_NEAR_ROBOT = (robot_pose(0.35, 0.21, -0.09),)


def _scenario(
    name: str,
    env: str,
    kwargs: dict[str, Any],
    *,
    overlay: str,
    urdf: str | None,
    robots: tuple[tuple[float, ...], ...],
    objects: tuple[tuple[str, Any], ...],
) -> Scenario:
    folder = "{SIMPLER_DIR}/ManiSkill2_real2sim/data/real_inpainting/"
    made = {
        **_BASE,
        **kwargs,
        "rgb_overlay_path": folder + overlay if overlay else None,
        "rgb_overlay_cameras": ("overhead_camera",) if overlay else None,
    }
    if urdf is not None:
        made["urdf_version"] = urdf
    return Scenario(_PREFIX + name, env, tuple(made.items()), robots, objects)


def vm_coke() -> tuple[Scenario, ...]:
    """4 colours x 3 ways that the can lies, 25 places each."""
    return tuple(
        _scenario(
            f"pick_coke_can_vm_{u}_{o}",
            "GraspSingleOpenedCokeCanInScene-v0",
            {"scene_name": _TABLE, orientation: True},
            overlay="google_coke_can_real_eval_1.png",
            urdf=urdf,
            robots=_CAN_ROBOT,
            objects=_CANS,
        )
        for u, urdf in enumerate(_URDFS)
        for o, orientation in enumerate(_ORIENTATIONS)
    )


def vm_near() -> tuple[Scenario, ...]:
    """4 colours, 60 settings each."""
    return tuple(
        _scenario(
            f"move_near_vm_{u}",
            "MoveNearGoogleBakedTexInScene-v0",
            {"scene_name": _TABLE},
            overlay="google_move_near_real_eval_1.png",
            urdf=urdf,
            robots=_NEAR_ROBOT,
            objects=_NEAR,
        )
        for u, urdf in enumerate(_URDFS)
    )


def vm_open_close(*, urdf_typo: bool) -> tuple[Scenario, ...]:
    """6 drawer tasks x 9 photographs x 4 colours.

    Args:
        urdf_typo: as released: the top drawer is opened before photographs a0 and a1 twice with
            the second tabletop and never with the default colours.
    """
    made = []
    for u, urdf in enumerate(_DRAWER_URDFS):
        for (photo, pose), env in itertools.product(_OVERLAYS.items(), _DRAWERS):
            wrong = urdf_typo and urdf is None and env == _DRAWERS[0] and photo in ("a0", "a1")
            made.append(
                _scenario(
                    # Closing drawers goes under the name of opening them, too.
                    f"open_drawer_vm_{u}_{photo}_{_DRAWERS.index(env)}",
                    env,
                    _VM_DRAWER,
                    overlay=f"open_drawer_{photo}.png",
                    urdf=_TABLETOP_2 if wrong else urdf,
                    robots=(robot_pose(*pose),),
                    objects=_AT_ORIGIN,
                )
            )
    return tuple(made)


def vm_place_in() -> tuple[Scenario, ...]:
    """3 photographs x 4 colours, 9 places of the apple each."""
    return tuple(
        _scenario(
            f"place_in_closed_top_drawer_vm_{u}_{photo}",
            _PLACE_IN,
            {**_VM_DRAWER, "model_ids": "baked_apple_v2"},
            overlay=f"open_drawer_{photo}.png",
            urdf=urdf,
            robots=(robot_pose(*_OVERLAYS[photo]),),
            objects=_APPLES,
        )
        for u, urdf in enumerate(_DRAWER_URDFS)
        for photo in ("a0", "b0", "c0")
    )


def va_coke() -> tuple[Scenario, ...]:
    """3 ways that the can lies x 11 variants, 25 places each."""
    plain, table = "GraspSingleOpenedCokeCan{}InScene-v0", {"scene_name": _TABLE}
    variants: tuple[tuple[str, dict[str, Any]], ...] = (
        ("", table),
        *(("", {"scene_name": scene}) for scene in _CABINETS),
        ("Distractor", table),
        ("Distractor", {**table, "distractor_config": "more"}),
        *(("", {"scene_name": scene}) for scene in _BACKGROUNDS),
        ("", {**table, "slightly_darker_lighting": True}),
        ("", {**table, "slightly_brighter_lighting": True}),
        ("AltGoogleCamera", table),
        ("AltGoogleCamera2", table),
    )
    return tuple(
        _scenario(
            f"pick_coke_can_va_{o}_{v}",
            plain.format(kind),
            {**kwargs, orientation: True},
            overlay="",
            urdf=None,
            robots=_CAN_ROBOT,
            objects=_CANS,
        )
        for o, orientation in enumerate(_ORIENTATIONS)
        for v, (kind, kwargs) in enumerate(variants)
    )


def va_near() -> tuple[Scenario, ...]:
    """10 variants, 60 settings each."""
    table = {"scene_name": _TABLE}
    variants: tuple[tuple[str, dict[str, Any]], ...] = (
        ("", table),
        ("", {**table, "no_distractor": True}),
        *(("", {"scene_name": scene}) for scene in _BACKGROUNDS),
        ("", {**table, "slightly_darker_lighting": True}),
        ("", {**table, "slightly_brighter_lighting": True}),
        *(("", {"scene_name": scene}) for scene in _CABINETS),
        ("Alt", table),
        ("Alt2", table),
    )
    envs = {
        "": "MoveNearGoogleInScene-v0",
        "Alt": "MoveNearAltGoogleCameraInScene-v0",
        "Alt2": "MoveNearAltGoogleCamera2InScene-v0",
    }
    return tuple(
        _scenario(
            f"move_near_va_{v}",
            envs[kind],
            kwargs,
            overlay="",
            urdf=None,
            robots=_NEAR_ROBOT,
            objects=_NEAR,
        )
        for v, (kind, kwargs) in enumerate(variants)
    )


def va_open_close(*, grid_bug: bool) -> tuple[Scenario, ...]:
    """6 drawer tasks x 7 variants x 9 robot places.

    Args:
        grid_bug: as released: the loop overwrites its own range of y, so that only 5 places of
            the 9 are visited.
    """
    ys = linspace(-0.2, 0.2, 3)
    places = [
        (x, y)
        for column, x in enumerate(linspace(0.65, 0.85, 3))
        for y in (ys[-1:] if grid_bug and column else ys)
    ]
    robots = tuple(robot_pose(x, y, 0.0) for x, y in places)
    return tuple(
        _scenario(
            f"open_drawer_va_{d}_{v}",
            env,
            {**_RAY_TRACED, **kwargs},
            overlay="",
            urdf=None,
            robots=robots,
            objects=_AT_ORIGIN,
        )
        for d, env in enumerate(_DRAWERS)
        for v, kwargs in enumerate(_VA_DRAWER)
    )


def va_place_in() -> tuple[Scenario, ...]:
    """7 variants, 3 robot places x 9 places of the apple each."""
    robots = tuple(robot_pose(0.65, y, 0.0) for y in linspace(-0.2, 0.2, 3))
    return tuple(
        _scenario(
            f"place_in_closed_top_drawer_va_{v}",
            _PLACE_IN,
            {**_RAY_TRACED, **kwargs, "model_ids": "apple"},
            overlay="",
            urdf=None,
            robots=robots,
            objects=_APPLES,
        )
        for v, kwargs in enumerate(_VA_DRAWER)
    )
