"""gymnasium, SAPIEN and ManiSkill2_real2sim at ef7a4d4, as far as they are used.

Arguments, their types and what is refused are those of the source; there is no physics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np

CAN = "GraspSingleOpenedCokeCan{}InScene-v0"
DRAWERS = (
    *(
        f"{verb}{place}DrawerCustomInScene-v0"
        for verb in ("Open", "Close")
        for place in ("Top", "Middle", "Bottom")
    ),
    "PlaceIntoClosedTopDrawerCustomInScene-v0",
)
_COMMON = {
    *("robot", "rgb_overlay_path", "rgb_overlay_cameras", "disable_bad_material", "scene_name"),
    *("model_ids", "urdf_version", "obs_mode", "control_mode", "sim_freq", "control_freq"),
    *("shader_dir", "camera_cfgs", "prepackaged_config"),
}
_LIGHT = {"slightly_darker_lighting", "slightly_brighter_lighting"}
_CAN = {*_COMMON, *_LIGHT, "upright", "laid_vertically", "lr_switch"}
_NEAR = {*_COMMON, *_LIGHT, "no_distractor"}
_DRAWER = {*_COMMON, "light_mode", "camera_mode", "station_name"}
_BRIDGE = {*_COMMON, *_LIGHT, "original_lighting", "ambient_only_lighting"}
# registered environment -> arguments that it takes, some of those of the source
REGISTERED: dict[str, set[str]] = {
    **dict.fromkeys((CAN.format(k) for k in ("", "AltGoogleCamera", "AltGoogleCamera2")), _CAN),
    CAN.format("Distractor"): {*_CAN, "distractor_config"},
    "MoveNearGoogleBakedTexInScene-v0": {*_NEAR, "light_mode"},
    **dict.fromkeys(
        (
            "MoveNearGoogleInScene-v0",
            "MoveNearAltGoogleCameraInScene-v0",
            "MoveNearAltGoogleCamera2InScene-v0",
        ),
        _NEAR,
    ),
    **dict.fromkeys(DRAWERS, _DRAWER),
    **dict.fromkeys(
        (
            "PutSpoonOnTableClothInScene-v0",
            "PutCarrotOnPlateInScene-v0",
            "StackGreenCubeOnYellowCubeBakedTexInScene-v0",
            "PutEggplantInBasketScene-v0",
        ),
        _BRIDGE,
    ),
}
_PHOTOS = (
    *("bridge_real_eval_1", "bridge_real_eval_2", "bridge_sink", "google_coke_can_real_eval_1"),
    "google_move_near_real_eval_1",
    *(f"open_drawer_{column}{row}" for column in "abc" for row in "012"),
)
_STAGES = (
    *("google_pick_coke_can_1_v4", "google_pick_coke_can_1_v4_alt_background"),
    *("google_pick_coke_can_1_v4_alt_background_2", "bridge_table_1_v1", "bridge_table_1_v2"),
    *(f"Baked_sc1_staging_objaverse_cabinet{n}_h870" for n in (1, 2)),
    *("frl_apartment_stage_simple", "modern_bedroom_no_roof", "modern_office_no_roof"),
    "dummy_drawer",
)
_ROBOT_OPTIONS = {"init_xy", "init_rot_quat", "init_height", "qpos"}


@dataclasses.dataclass
class Pose:
    """`sapien.core.Pose`: position and quaternion wxyz."""

    p: Any = (0.0, 0.0, 0.0)
    q: Any = (1.0, 0.0, 0.0, 0.0)


@dataclasses.dataclass
class PDEEPoseControllerConfig:
    """A control mode of an arm."""

    joint_names: list[str]
    stiffness: list[float]
    frame: str = "ee"
    use_delta: bool = True
    use_target: bool = False
    interpolate: bool = False
    controller_cls: ClassVar[type]


class PDEEPoseController:
    """Its absolute branch reads a rotation vector."""

    def __init__(self, config: PDEEPoseControllerConfig) -> None:
        self.config = config

    def compute_target_pose(self, prev_ee_pose_at_base: Pose, action: Any) -> Pose:
        assert self.config.frame == "base" or self.config.use_delta, self.config.frame
        angle = float(np.linalg.norm(action[3:6]))
        axis = action[3:6] / angle if angle else np.zeros(3)
        return Pose(action[:3], np.array([np.cos(angle / 2), *(np.sin(angle / 2) * axis)]))


PDEEPoseControllerConfig.controller_cls = PDEEPoseController


class _Config:
    """Gains of a robot, with the control modes that the source has for steps."""

    arms: ClassVar[dict[str, dict[str, Any]]]
    grippers: ClassVar[tuple[str, ...]]
    camera: ClassVar[str]

    def __init__(self) -> None:
        self.urdf_path = "robot.urdf"
        self.arm_stiffness = [1169.8, 730.0]

    @property
    def controllers(self) -> dict[str, Any]:
        return {
            f"{arm}_{gripper}": {
                "arm": PDEEPoseControllerConfig(["waist"], self.arm_stiffness, **row),
                "gripper": gripper,
            }
            for arm, row in self.arms.items()
            for gripper in self.grippers
        }


class WidowXDefaultConfig(_Config):
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        "arm_pd_ee_delta_pose_align2": {"frame": "ee_align2"},
        "arm_pd_ee_target_delta_pose_align2": {"frame": "ee_align2", "use_target": True},
        "arm_pd_ee_target_delta_pose_align2_interpolate_by_planner": {
            "frame": "ee_align2",
            "use_target": True,
            "interpolate": True,
        },
    }
    grippers: ClassVar[tuple[str, ...]] = ("gripper_pd_joint_pos", "gripper_pd_joint_target_pos")
    camera: ClassVar[str] = "3rd_view_camera"


class GoogleRobotStaticBaseConfig(_Config):
    arms: ClassVar[dict[str, dict[str, Any]]] = {
        "arm_pd_ee_delta_pose_align": {"frame": "ee_align"},
        "arm_pd_ee_delta_pose_align_interpolate_by_planner": {
            "frame": "ee_align",
            "interpolate": True,
        },
    }
    grippers: ClassVar[tuple[str, ...]] = (
        "gripper_pd_joint_pos",
        "gripper_pd_joint_target_delta_pos_interpolate_by_planner",
    )
    camera: ClassVar[str] = "overhead_camera"


class WidowX:
    config_class: ClassVar[type[_Config]] = WidowXDefaultConfig

    @classmethod
    def get_default_config(cls) -> _Config:
        return cls.config_class()


class GoogleRobotStaticBase(WidowX):
    config_class: ClassVar[type[_Config]] = GoogleRobotStaticBaseConfig


class Environment:
    """The tool goes where its controller puts it; solved once it is above z = 1."""

    def __init__(
        self, log: list[tuple[str, Any]], robots: dict[str, Any], name: str, **kwargs: Any
    ) -> None:
        if name not in REGISTERED:
            raise KeyError(f"Env {name} not found in registry")
        unknown = sorted(set(kwargs) - REGISTERED[name])
        if unknown:
            raise TypeError(f"__init__() got an unexpected keyword argument {unknown[0]!r}")
        if kwargs["obs_mode"] != "rgbd":
            unsupported = NotImplementedError(f"Unsupported obs mode: {kwargs['obs_mode']}")
            raise unsupported
        self._log, self._name = log, name
        self._config = robots[kwargs["robot"]].get_default_config()
        mode, modes = kwargs["control_mode"], self._config.controllers
        assert mode in modes, f"{mode} not in supported modes: {list(modes)}"
        arm = modes[mode]["arm"]
        self._controller = arm.controller_cls(arm)
        assert kwargs["scene_name"] in _STAGES
        overlay = kwargs.get("rgb_overlay_path")
        if overlay is not None and not Path(overlay).exists():
            raise FileNotFoundError(f"rgb_overlay_path {overlay} is not found.")
        cameras = kwargs.get("rgb_overlay_cameras", [])
        cameras = cameras if isinstance(cameras, list) else [cameras]
        segmented = kwargs["camera_cfgs"].get("add_segmentation", False)
        for camera in cameras if overlay is not None else ():
            if camera != self._config.camera:
                raise KeyError(camera)
            assert segmented, "Image overlay requires segment info in the observation!"
        kwargs["camera_cfgs"].pop("add_segmentation", None)  # the source changes it too
        self._steps, self.tcp, self._closed = 0, SimpleNamespace(pose=Pose()), False
        log.append(("make", (name, kwargs)))

    @property
    def unwrapped(self) -> Environment:
        return self

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        assert not self._closed
        assert set(options) <= {"obj_init_options", "robot_init_options", "reconfigure"}
        self._log.append(("reset", options))
        robot, placed = options["robot_init_options"], options["obj_init_options"]
        assert set(robot) <= _ROBOT_OPTIONS
        assert (len(robot["init_xy"]), len(robot["init_rot_quat"])) == (2, 4)
        if "episode_id" in placed:
            assert isinstance(placed["episode_id"], int)
        self._state = np.ravel(next(iter(placed.values()))).astype(np.float64)
        self._steps, self.tcp.pose = 0, Pose(np.array([0.1, 0.2, 0.3], np.float32))
        return self._observation(), {}

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if not isinstance(action, np.ndarray):
            raise TypeError(type(action))
        if np.isnan(action).any():
            raise ValueError("Action cannot be NaN. Environment received:", action)
        assert action.shape == (7,), (action.shape, 7)
        self._steps += 1
        self.tcp.pose = self._controller.compute_target_pose(self.tcp.pose, action[:6])
        done = bool(self.tcp.pose.p[2] > 1)
        return self._observation(), float(done), done, True, {"elapsed_steps": self._steps}

    def get_language_instruction(self) -> str:
        return "open the drawer" if self._steps < 2 else "put the apple in"

    def get_state(self) -> np.ndarray:
        return self._state

    def close(self) -> None:
        self._log.append(("close", None))
        self._closed = True

    def _observation(self) -> dict[str, Any]:
        image = np.full((4, 5, 3), self._steps, np.uint8)
        rotation = np.array([1.0, 0.0, 0.0, 0.0])
        tcp = np.hstack((self.tcp.pose.p, self.tcp.pose.q)).astype(np.float32)
        return {
            "agent": {"qpos": np.zeros(8), "base_pose": np.array([1, 0, 0, *rotation], np.float32)},
            # only grasping and moving tasks have it
            "extra": {} if self._name in DRAWERS else {"tcp_pose": tcp},
            "camera_param": {},
            "image": {self._config.camera: {"rgb": image, "depth": image[..., :1]}},
        }


def checkout(folder: Path) -> None:
    """Writes the photographs that a checkout of SimplerEnv has."""
    photos = folder / "ManiSkill2_real2sim" / "data" / "real_inpainting"
    photos.mkdir(parents=True)
    for name in _PHOTOS:
        (photos / f"{name}.png").touch()


def modules(log: list[tuple[str, Any]]) -> dict[str, ModuleType]:
    """Returns the modules that are imported; every call is appended to `log`."""
    made: dict[str, Any] = {name: ModuleType(name) for name in _module_names()}
    robots = {
        "google_robot_static": GoogleRobotStaticBase,
        "widowx": WidowX,
        "widowx_bridge_dataset_camera_setup": WidowX,
    }
    made["gymnasium"].make = lambda name, **kwargs: Environment(log, robots, name, **kwargs)
    scenes = "mani_skill2_real2sim.envs.custom_scenes.base_env"
    made[scenes].CustomSceneEnv = type("CustomSceneEnv", (), {"SUPPORTED_ROBOTS": robots})
    controllers = made["mani_skill2_real2sim.agents.controllers"]
    controllers.PDEEPoseController = PDEEPoseController
    controllers.PDEEPoseControllerConfig = PDEEPoseControllerConfig
    made["sapien.core"].Pose = Pose
    return made


def _module_names() -> Iterator[str]:
    yield from ("gymnasium", "sapien", "sapien.core")
    for name in ("envs", "envs.custom_scenes", "envs.custom_scenes.base_env"):
        yield f"mani_skill2_real2sim.{name}"
    yield from ("mani_skill2_real2sim", "mani_skill2_real2sim.agents")
    yield "mani_skill2_real2sim.agents.controllers"
