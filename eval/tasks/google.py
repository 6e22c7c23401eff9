"""SimplerEnv's Google robot, four tasks by visual matching (VM) and by variant aggregation (VA)."""

from __future__ import annotations

import dataclasses

from eval.tasks.profiles import ActionForm, ClientProfile, GripperRule, Slot, View, Wire
from eval.tasks.spec import SUCCESS, Reference, Scenario, TaskSpec

from . import google_scenarios as scenes


def _client(threshold: float, executed: int) -> ClientProfile:
    return ClientProfile(
        domain_id=1,
        views=(
            View("image", "image", None, "overhead_camera", flip_rows=False, flip_columns=False),
        ),
        rotation="interleaved",
        action_width=20,
        executed=executed,
        stride=2,
        state=(),
        feedback="none",
        feedback_channels=0,
        action=ActionForm(
            arms=1,
            rotation_form="euler_xyz",
            gripper=GripperRule(threshold, False, True, closed=(1.0,), open=(-1.0,)),
            dtype="float64",
        ),
        wire=Wire(10, "json_numpy", "float32", timeout_s=20.0),
        anchor_hz=3.0,
        proprio="zero",
        xyz_base=Slot("tcp_pose", 0, 3),
        xyz_base_frame="base_pose",
    )


def _rows(
    name: str,
    threshold: float,
    executed: int,
    registered_steps: int,
    *,
    rate: float,
    released: tuple[Scenario, ...],
    meant: tuple[Scenario, ...],
) -> tuple[TaskSpec, TaskSpec]:
    """Returns the row as released, with doubled steps, and the strict one."""
    spec = TaskSpec(
        name=name,
        benchmark="simpler",
        suite=name,
        task_ids=tuple(range(len(released))),
        num_init_states=released[0].num_episodes,
        client=_client(threshold, executed),
        step_limit=2 * registered_steps,
        control_hz=3,
        fresh_env=False,
        reference=(Reference(rate, SUCCESS, "X-VLA paper"),),
        scenarios=released,
    )
    strict = dataclasses.replace(
        spec,
        name=name + ":strict",
        client=_client(0.5, 10),
        step_limit=registered_steps,
        num_init_states=meant[0].num_episodes,
        scenarios=meant,
        reference=(),
    )
    return spec, strict


def _same(
    name: str,
    threshold: float,
    executed: int,
    registered_steps: int,
    rate: float,
    made: tuple[Scenario, ...],
) -> tuple[TaskSpec, TaskSpec]:
    return _rows(name, threshold, executed, registered_steps, rate=rate, released=made, meant=made)


ROWS: tuple[TaskSpec, ...] = (
    *_same("google_vm_coke", 0.25, 10, 80, 98.3, scenes.vm_coke()),
    *_same("google_vm_near", 0.25, 10, 80, 97.5, scenes.vm_near()),
    *_rows(
        "google_vm_open_close",
        0.35,
        10,
        113,
        rate=74.5,
        released=scenes.vm_open_close(urdf_typo=True),
        meant=scenes.vm_open_close(urdf_typo=False),
    ),
    *_same("google_vm_place_in", 0.28, 6, 200, 63.8, scenes.vm_place_in()),
    *_same("google_va_coke", 0.25, 10, 80, 87.3, scenes.va_coke()),
    *_same("google_va_near", 0.25, 10, 80, 84.0, scenes.va_near()),
    *_rows(
        "google_va_open_close",
        0.25,
        10,
        113,
        rate=64.2,
        released=scenes.va_open_close(grid_bug=True),
        meant=scenes.va_open_close(grid_bug=False),
    ),
    *_same("google_va_place_in", 0.30, 10, 200, 70.3, scenes.va_place_in()),
)
