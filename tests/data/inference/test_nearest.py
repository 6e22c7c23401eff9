"""Nearest released domains: by statistics of a recording, as a comment of its row."""

import numpy as np

from data.inference.nearest import Statistics, nearest_domains, statistics
from data.inference.questions import infer
from data.inference.row_text import row_source
from data.rows.domains import domain_facts
from data.rows.robots import ROBOT_FACTS
from data.rows.table import DATASETS
from tests.data.inference.layouts import act
from tests.data.inference.planted import joint_recording, pose_recording
from tests.data.inference.test_row_text import row_of


def names(seen: Statistics):
    return [near.domain for near in nearest_domains(seen)]


def test_statistics_of_a_hand_are_those_of_its_numbers():
    recording = pose_recording()
    seen = statistics(recording, infer(recording))
    rows = recording.rows("observation.state")[:, :3]
    assert seen.reach == np.linalg.norm(rows, axis=1).max()
    assert (seen.arms, seen.rate_hz, seen.views, seen.carried) == (1, 30.0, 2, 1)
    assert seen.speed is not None
    assert 0.1 < seen.speed < 3


def test_joints_have_neither_reach_nor_speed():
    seen = statistics(joint_recording(), infer(joint_recording()))
    assert (seen.reach, seen.speed) == (None, None)


def test_an_unknown_rate_is_no_rate_of_a_domain():
    answers = {"channel_order": "rgb", "instruction": "sweep"}
    assert statistics(act(), infer(act(), answers)).rate_hz is None


def test_the_recording_of_a_domain_is_nearest_to_it():
    slow = Statistics(arms=1, rate_hz=5.0, views=1, carried=0, reach=0.5, speed=0.3)
    assert names(slow)[0] == "Bridge"
    droid = Statistics(arms=1, rate_hz=15.0, views=2, carried=1, reach=0.75, speed=0.6)
    assert names(droid)[:2] == ["Droid-Left", "Droid-Right"]
    two = Statistics(arms=2, rate_hz=30.0, views=3, carried=2, reach=0.6, speed=0.5)
    assert all(f.arms == 2 for f in domain_facts() if f.domain in names(two))


def test_a_hand_beyond_an_arm_is_not_of_that_arm():
    near = Statistics(arms=1, rate_hz=15.0, views=2, carried=1, reach=0.75, speed=0.6)
    far = Statistics(arms=1, rate_hz=15.0, views=2, carried=1, reach=3.0, speed=9.0)
    assert nearest_domains(far)[0].distance > nearest_domains(near)[0].distance


def test_facts_are_of_released_domains_and_known_robots():
    facts = domain_facts()
    assert {"Bridge", "RT1", "libero", "Droid-Left", "AGIBOT", "robomind-ur"} <= {
        f.domain for f in facts
    }
    assert {f.robot for f in facts} <= {*ROBOT_FACTS, ""}
    released = {row.domain for row in DATASETS.values() if row.domain_id is not None}
    assert {f.domain for f in facts} <= released


def test_the_nearest_domain_is_a_comment_and_no_identity():
    recording = pose_recording()
    text = row_source(recording, infer(recording), command="python", domain="desk")
    plain = " ".join(text.replace("#", " ").split())
    assert "nearest released domains, no choice of this row: " in plain
    near = nearest_domains(statistics(recording, infer(recording)))[0]
    assert f"config.new_domains=desk={near.domain}" in plain.replace("= ", "=")
    row = row_of(text)
    assert (row.domain, row.domain_id) == ("desk", None)
