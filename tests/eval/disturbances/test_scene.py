"""Disturbances on a small model: what they change, by how much, and what they leave alone."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import pytest

from eval.disturbances import objects
from eval.disturbances.axes import AXES, disturbance
from eval.disturbances.scene import Disturber, LoadedScene

mujoco = pytest.importorskip("mujoco", reason="MuJoCo is not installed (extra sim)")

MODEL = """
<mujoco>
  <visual><headlight ambient=".1 .1 .1" diffuse=".4 .4 .4"/></visual>
  <asset>
    <texture name="wood" type="2d" builtin="flat" rgb1=".5 .4 .3" width="16" height="16"/>
    <texture name="box" type="cube" builtin="flat" rgb1=".2 .8 .5" width="8" height="8"/>
    <texture name="sky" type="skybox" builtin="flat" rgb1=".1 .2 .9" width="8" height="8"/>
    <material name="wood" texture="wood"/>
    <material name="box" texture="box"/>
  </asset>
  <worldbody>
    <light pos="0 0 2" diffuse=".8 .8 .8" specular=".3 .3 .3" castshadow="false"/>
    <camera name="room" pos="1 0 1" xyaxes="0 1 0 -.7 0 .7"/>
    <geom name="floor" type="plane" size="2 2 .1" material="wood"/>
    <body name="arm" pos="-.5 0 .3">
      <joint name="arm1" axis="0 1 0"/><joint name="arm2" axis="0 0 1"/>
      <geom type="capsule" size=".03" fromto="0 0 0 0 0 .2"/>
      <camera name="wrist" pos="0 0 .2"/>
    </body>
    <body name="mug" pos="0 0 .04"><freejoint name="mug_joint"/>
      <geom type="box" size=".04 .04 .04" material="box"/></body>
    <body name="can" pos=".09 0 .04"><freejoint name="can_joint"/>
      <geom type="box" size=".04 .04 .04" material="box"/></body>
    {}
  </worldbody>
</mujoco>
"""
DISTRACTORS = """
    <body name="milk" pos="0 0 0"><freejoint name="milk_distractor_0_joint0"/>
      <body><geom type="box" size=".03 .05 .03"/></body></body>
    <body name="butter" pos="0 0 0"><freejoint name="butter_distractor_1_joint0"/>
      <body><geom type="box" size=".03 .03 .02"/></body></body>
"""
MILK, BUTTER = "milk_distractor_0_joint0", "butter_distractor_1_joint0"
LOOKS = {
    "camera": ("cam_pos", "cam_quat"),
    "light": ("light_diffuse", "light_specular", "light_ambient"),
    "texture": ("tex_data",),
}


class Small:
    """The small model, disturbed on one axis."""

    def __init__(self, axis: str, level: int) -> None:
        more = axis == "distractors"
        self.model: Any = mujoco.MjModel.from_xml_string(MODEL.format(DISTRACTORS if more else ""))
        self.data: Any = mujoco.MjData(self.model)
        self.reloads = 0
        things = objects.Things(
            {"mug": "mug_joint", "can": "can_joint"}, "mug", [MILK, BUTTER] if more else [], 0.0
        )

        def reload() -> None:
            self.reloads += 1

        self.scene = LoadedScene(
            self.model, self.data, ["room", "wrist"], things, arm=[0, 1], reload=reload
        )
        self.disturber = Disturber(disturbance(axis, level), 3, self.model)

    def disturbed(self, state: int = 30, seed: int = 130) -> Small:
        mujoco.mj_resetData(self.model, self.data)
        mujoco.mj_forward(self.model, self.data)
        self.disturber.disturb(self.scene, state, seed)
        return self

    def numbers(self) -> dict[str, np.ndarray]:
        columns = {
            name: np.array(getattr(self.model, name)) for names in LOOKS.values() for name in names
        }
        light = self.model.vis.headlight
        return {**columns, "headlight": np.array(light.diffuse), "qpos": self.data.qpos.copy()}


def changed(one: Small, other: Small) -> set[str]:
    ours, theirs = one.numbers(), other.numbers()
    return {name for name in ours if not np.array_equal(ours[name], theirs[name])}


@pytest.mark.parametrize("axis", AXES)
def test_level_zero_changes_no_bit(axis: str) -> None:
    plain = Small(axis, 0)
    before = plain.numbers()
    after = plain.disturbed().numbers()
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


@pytest.mark.parametrize("axis", LOOKS)
def test_looks_change_alone_and_follow_state_and_seed(axis: str) -> None:
    plain, one = Small(axis, 0).disturbed(), Small(axis, 2).disturbed()
    assert changed(plain, one) >= {LOOKS[axis][0]}
    assert changed(plain, one) <= {*LOOKS[axis], "headlight"}, "the state is as it was"
    assert changed(one, Small(axis, 2).disturbed()) == set()
    # the same model after another episode: nothing of that one is left
    other = Small(axis, 2).disturbed(31, 131)
    assert changed(one, other) >= {LOOKS[axis][0]}
    assert changed(one, other.disturbed(30, 130)) == set()


def test_a_higher_level_goes_further_the_same_way() -> None:
    plain = Small("posture", 0).disturbed().data.qpos[:2].copy()
    ways = [Small("posture", level).disturbed().data.qpos[:2] - plain for level in (1, 2, 3)]
    np.testing.assert_allclose([np.linalg.norm(way) for way in ways], AXES["posture"].amounts)
    np.testing.assert_allclose(ways[1], 2 * ways[0])


def test_a_camera_moves_around_what_it_looks_at() -> None:
    plain, one = Small("camera", 0).disturbed(), Small("camera", 3).disturbed()
    room, wrist = (plain.model.camera(name).id for name in ("room", "wrist"))
    for name in ("cam_pos", "cam_quat"):
        np.testing.assert_array_equal(
            getattr(one.model, name)[wrist], getattr(plain.model, name)[wrist]
        )
    axes = [small.data.cam_xmat[room].reshape(3, 3) for small in (plain, one)]
    places = [small.data.cam_xpos[room] for small in (plain, one)]
    # both look at the objects, from the same distance and 20 degrees apart
    depth = (places[0] - np.array([0.045, 0, 0.04])) @ axes[0][:, 2]
    targets = [place - depth * axis[:, 2] for place, axis in zip(places, axes, strict=True)]
    np.testing.assert_allclose(targets[0], targets[1], atol=1e-9)
    assert np.degrees(np.arccos(axes[0][:, 2] @ axes[1][:, 2])) == pytest.approx(20)


def test_light_is_multiplied_in_all_lights() -> None:
    plain, one = Small("light", 0).disturbed(), Small("light", 1).disturbed()
    factor = one.model.light_diffuse[0] / plain.model.light_diffuse[0]
    np.testing.assert_allclose(one.model.light_specular[0], 0.3 * factor, rtol=1e-6)
    np.testing.assert_allclose(one.numbers()["headlight"], 0.4 * factor, rtol=1e-6)
    assert abs(np.log(factor).mean()) == pytest.approx(0.2, abs=1e-6)
    assert np.ptp(factor) > 0.02, "a tint"


def test_textures_get_patches_and_the_sky_none() -> None:
    plain, one = Small("texture", 0).disturbed(), Small("texture", 2).disturbed()
    assert (plain.reloads, one.reloads) == (0, 1)
    apart = one.model.tex_data.astype(int) - plain.model.tex_data
    start = one.model.tex_adr[2]
    assert not apart[start:].any()
    wood = apart[: 16 * 16 * 3].reshape(8, 2, 8, 2, 3)
    assert (wood == wood[:, :1, :, :1]).all(), "patches of 2 x 2 pixels"
    assert 9 < wood.std() < 15
    assert len(np.unique(apart[16 * 16 * 3 : start].reshape(6, -1), axis=0)) == 6


def test_the_item_moves_by_its_distance_and_into_nothing() -> None:
    plain = Small("place", 0).disturbed()
    for state in range(8):
        one = Small("place", 2).disturbed(state, 100 + state)
        way = one.data.joint("mug_joint").qpos - plain.data.joint("mug_joint").qpos
        assert np.linalg.norm(way[:2]) == pytest.approx(0.02)
        assert not way[2:].any()
        # the can is 1 cm away on one side
        assert way[0] < 0.0121
        assert changed(plain, one) == {"qpos"}


def test_distractors_stand_clear_of_everything() -> None:
    for state in range(8):
        one = Small("distractors", 2).disturbed(state, state)
        data = one.data
        for joint, height in ((MILK, 0.072), (BUTTER, 0.011)):
            place = data.joint(joint).qpos
            assert place[2] == pytest.approx(height)
            assert np.abs(place[:2]).max() < 0.09 + objects._MARGIN + 1e-9
        bodies = [one.model.joint(j).bodyid[0] for j in (MILK, BUTTER)]
        for contact in data.contact[: data.ncon]:
            roots = one.model.body_rootid[one.model.geom_bodyid[[contact.geom1, contact.geom2]]]
            assert not set(bodies) & set(roots) or 0 in roots, "they touch the floor at most"
    # milk stands on its end, butter lies; both are turned about the vertical only beyond that
    upright = one.data.xmat[bodies].reshape(2, 3, 3)[:, 2]
    np.testing.assert_allclose(upright, [[0, 1, 0], [0, 0, 1]], atol=1e-9)


def test_distractors_stand_on_the_surface_where_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = '<geom name="floor" type="plane" size="2 2 .1" material="wood"/>'
    table = '<geom name="table" type="box" size=".3 .12 .05" pos="0 0 -.05"/>'
    monkeypatch.setattr(sys.modules[__name__], "MODEL", MODEL.replace(plane, table))
    for state in range(8):
        one = Small("distractors", 2).disturbed(state, state)
        for joint in MILK, BUTTER:
            assert np.abs(one.data.joint(joint).qpos[1]) <= 0.07 + 1e-9


def test_states_without_distractors_fit_scenes_with_them() -> None:
    one = Small("distractors", 2).disturbed()
    things, own = one.scene.things, 2 + 2 * 7
    state = np.concatenate(([0.5], np.arange(own), -np.arange(2 + 2 * 6)))
    made = objects.state_with(one.model, one.data, things, state)
    np.testing.assert_array_equal(made[: 1 + own], state[: 1 + own])
    np.testing.assert_array_equal(made[1 + own : 1 + own + 14], one.data.qpos[own:])
    with pytest.raises(ValueError, match=r"state of 30 numbers; without distractors .* has 31"):
        objects.state_with(one.model, one.data, things, state[:-1])


TASK_FILE = "(define (problem P)\n  (:objects\n    milk_1 - milk\n    a_1 - a\n  )\n  (:init)\n)"


def test_distractors_are_written_into_the_task_file() -> None:
    def added(task_id: int, count: int) -> list[str]:
        text = objects.with_distractors(TASK_FILE, task_id, count)
        assert text.count("(") == text.count(")")
        (listed,) = re.findall(r"\(:objects([^()]*)\)", text)
        lines = [line.split(" - ") for line in listed.strip().splitlines()]
        assert [names for names, _ in lines[:2]] == ["milk_1", "    a_1"]
        assert all(name.startswith(c) for names, c in lines[2:] for name in names.split())
        return sorted((n for names, _ in lines[2:] for n in names.split()), key=lambda n: n[-2:])

    four = added(3, 4)
    assert [name[-1] for name in four] == ["0", "1", "2", "3"]
    assert added(3, 1) == four[:1]
    nine = added(3, 9)
    assert nine[:4] == four
    assert len({name.partition("_distractor")[0] for name in nine}) == 9
    assert not any(name.startswith("milk") for name in nine), "the task has one"
    assert added(4, 9) != nine
    # one more than there are categories: the first a second time
    (again,) = set(added(3, 10)) - set(nine)
    assert again == nine[0].replace("_0", "_9")
    with pytest.raises(ValueError, match="nothing can be added"):
        objects.with_distractors("(define)", 3, 1)
    full = TASK_FILE.replace("milk_1 - milk", " ".join(objects.GROCERIES))
    with pytest.raises(ValueError, match=r"has all of alphabet_soup, .* no distractor is left"):
        objects.with_distractors(full, 3, 1)
