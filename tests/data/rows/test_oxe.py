"""The table of Open X-Embodiment: its language, its rows by eye, and its mixtures."""

import dataclasses

import pytest

from data.parts import EpisodeFilter, View
from data.poses.arms import Base, Columns, Gripper, Kinematics, NoGripper, Pose
from data.rows import oxe
from data.rows.mixtures import check_mixture, mixture
from data.rows.oxe_mixtures import (
    LEFT_OUT,
    PER_FRAMES,
    PER_SAMPLES,
    extended,
    left_out_of_all,
)
from data.rows.table import DATASETS, dataset

EXTERNAL = "_converted_externally_to_rlds"
HEADER = ",".join(oxe.COLUMNS)
GOOD = {
    "name": "s",
    "class": "state",
    "confidence": "high",
    "robot": "franka_panda",
    "hz": "10",
    "pose": "o.s[0:6/7] euler xyz",
    "gripper": "o.s[6/7] closed 0 open 1",
    "views": "o.image main",
    "text": "t",
    "keep": "-",
    "frame": "base",
    "versions": "0.1.0",
    "splits": "train",
    "episodes": "1",
    "share": "1",
    "source": "a builder",
    "remarks": "-",
}


def made(**cells: str) -> oxe.DatasetSpec:
    """The row of a table of one line, which differs from a good one in these cells."""
    (line,) = oxe.read_lines(f"{HEADER}\n{','.join((GOOD | cells).values())}")
    (row,) = oxe.rows_of(line)
    return row


def arm(name: str) -> tuple[Pose | Kinematics, Gripper | NoGripper]:
    (only,) = dataset(name).arms
    return only.pose, only.gripper


def recorded(name: str) -> Pose:
    pose, _ = arm(name)
    assert isinstance(pose, Pose)
    return pose


def test_all_sets_of_the_catalogue_are_there_once():
    rows = [row.name for row in oxe.OXE_ROWS]
    assert len(rows) == 65
    assert len(oxe.REFUSED) == 22
    assert len({*rows, *oxe.REFUSED}) == 87
    assert all(DATASETS[row.name] is row for row in oxe.OXE_ROWS)


def test_rows_are_counted_by_class():
    classes = [line.cells["class"] for line in oxe.LINES if not line.refused for _ in line.names]
    counts = {name: classes.count(name) for name in oxe.PROPRIO}
    assert counts == {
        "state": 53,
        "partial": 4,
        "commanded": 1,
        "fk": 7,
        "integrate": 0,
        "none": 0,
    }


def test_a_refused_set_says_why():
    assert "changes of the hand only" in oxe.REFUSED["roboturk"]
    for name, reason in oxe.REFUSED.items():
        with pytest.raises(ValueError, match=r"refused.*data/rows/oxe\.csv") as error:
            dataset(name)
        assert reason in str(error.value)
        assert name in str(error.value)
    with pytest.raises(ValueError, match="bounds are not in the files"):
        mixture("fmb:1,robo_net:1")


@pytest.mark.parametrize(
    ("hz", "rate_hz", "window_s", "window_frames", "margin"),
    [
        ("15", 15, 4, None, 30),  # X-VLA's DROID
        ("5", 5, 5, None, 10),  # and its BridgeData
        ("30", 30, 4, None, 60),
        ("12.5", 12.5, 4, None, 25),
        ("3", 3, 25 / 3, None, 6),
        ("1", 1, 25, None, 2),
        ("20 uneven", 20, 4, 80, 40),
        ("3 uneven", 3, 25 / 3, 25, 6),
        ("? uneven", 1, 25, 25, 2),
    ],
)
def test_windows_follow_the_rate(hz, rate_hz, window_s, window_frames, margin):
    row = made(hz=hz)
    assert (row.rate_hz, row.window_s) == (rate_hz, window_s)
    assert (row.window_frames, row.index_margin) == (window_frames, margin)


def test_a_plain_line_is_a_row():
    row = made(versions="0.0.1 0.1.0", splits="train extra (val)", robot="ur5 simulated")
    assert (row.storage, row.storage_name, row.domain, row.domain_id) == ("rlds", "s", "s", None)
    assert (row.storage_versions, row.splits) == (("0.0.1", "0.1.0"), ("train", "extra"))
    assert (row.confidence, row.source, row.frame) == ("high", "a builder", "base")
    assert (row.robot, made(robot="-").robot) == ("ur5", "")
    assert (row.augment, made().augment) == ("none", "jitter")
    assert row.widths == {"o.s": 7}
    assert row.rotation_layout == "interleaved"
    assert (row.delta_idx, row.mask_proprio_idx, row.keep_episodes) == ((), (), ())
    assert (row.proprio, made(**{"class": "commanded"}).proprio) == ("measured", "commanded")
    assert row.empty_text == "fault"


def test_a_family_shares_a_domain():
    lines = oxe.read_lines(f"{HEADER}\n{','.join((GOOD | {'name': 'a_{b|c}_d'}).values())}")
    rows = [row for line in lines for row in oxe.rows_of(line)]
    assert [(row.name, row.storage_name, row.domain) for row in rows] == [
        ("a_b_d", "a_b_d", "a_d"),
        ("a_c_d", "a_c_d", "a_d"),
    ]
    assert {r.domain for r in oxe.OXE_ROWS if r.name.startswith("tdroid_")} == {"tdroid"}


def test_a_taken_name_has_a_suffix_and_the_folder_none():
    suffixed = {row.name: row.storage_name for row in oxe.OXE_ROWS if row.name.endswith("_oxe")}
    assert suffixed == {
        "bridge_oxe": "bridge",
        "bridge_dataset_oxe": "bridge_dataset",
        "fractal20220817_data_oxe": "fractal20220817_data",
        "droid_oxe": "droid",
    }
    assert mixture("bridge") == mixture("bridge_dataset")


def test_quaternions_in_both_orders():
    pose = recorded(f"maniskill_dataset{EXTERNAL}")
    assert pose.rotation.order == "wxyz"
    base = Base(columns=(Columns("observation.base_pose", 0, 7),), order="wxyz")
    assert pose.base == base, "its poses are in the world"
    wxyz = {
        row.name
        for row in oxe.OXE_ROWS
        for arm in row.arms
        if isinstance(arm.pose, Pose) and arm.pose.rotation.order == "wxyz"
    }
    iamlab = f"iamlab_cmu_pickup_insert{EXTERNAL}"
    assert wxyz == {f"maniskill_dataset{EXTERNAL}", iamlab}
    pose, gripper = arm(iamlab)
    assert isinstance(pose, Pose)
    assert pose.position.columns == (Columns("action", 0, 3, lag=1),)
    assert pose.rotation.columns == (Columns("action", 3, 7, lag=1),)
    assert isinstance(gripper, Gripper)
    assert (gripper.key, gripper.lag) == ("observation.state", 0), "only the pose lags"
    assert dataset(iamlab).before_lag == "leave_out"


def test_orders_of_angles():
    orders = {
        row.name: arm.pose.rotation.order
        for row in oxe.OXE_ROWS
        for arm in row.arms
        if isinstance(arm.pose, Pose) and arm.pose.rotation.kind == "euler"
    }
    assert {name for name, order in orders.items() if order == "zxy"} == {
        f"dlr_sara_pour{EXTERNAL}",
        f"dlr_sara_grid_clamp{EXTERNAL}",
        f"dlr_edan_shared_control{EXTERNAL}",
    }
    assert {name for name, order in orders.items() if order == "ZYX"} >= {
        f"utokyo_xarm_pick_and_place{EXTERNAL}",
        f"utokyo_xarm_bimanual{EXTERNAL}",
    }
    # as the joints beside it say, in the contributor's own data
    assert {n for n, order in orders.items() if order == "zyx"} == {f"tokyo_u_lsmo{EXTERNAL}"}
    assert recorded("bc_z").rotation.kind == "axis_angle"
    assert recorded("libero_goal_no_noops").rotation.kind == "axis_angle"


def test_matrices_by_columns_and_rows():
    buds = recorded(f"austin_buds_dataset{EXTERNAL}")
    assert buds.position.columns == (Columns("observation.state", 20, 23),)
    assert buds.rotation.columns == (Columns("observation.state", 8, 24),)
    assert buds.rotation.order == "columns"
    field = recorded("uiuc_d3field")
    assert [c.first for c in field.position.columns] == [3, 7, 11]
    assert field.rotation.order == "rows"
    skipping = {row.name for row in oxe.OXE_ROWS if row.skip_placeholders}
    assert skipping == {
        "viola",
        f"austin_buds_dataset{EXTERNAL}",
        f"austin_sirius_dataset{EXTERNAL}",
    }


def test_units_bounds_and_what_is_not_recorded():
    assert recorded(f"utokyo_pr2_opening_fridge{EXTERNAL}").position.scale == 0.001
    assert recorded(f"ucsd_pick_and_place_dataset{EXTERNAL}").position.scale == 0.1
    pose = recorded(f"stanford_mask_vit{EXTERNAL}")
    low, high = "observation.low_bound", "observation.high_bound"
    assert pose.position.bounds == (Columns(low, 0, 3), Columns(high, 0, 3))
    assert pose.rotation.bounds == (Columns(low, 3, 4), Columns(high, 3, 4))
    unrecorded = {row.name: row.unrecorded for row in oxe.OXE_ROWS if row.unrecorded}
    assert unrecorded["language_table"] == (2, 3, 4, 5, 6, 7, 8, 9)
    assert unrecorded["cmu_playing_with_food"] == (3, 4, 5, 6, 7, 8)
    assert unrecorded["robo_set"] == (9,), "a gripper of unknown range is not read"
    assert recorded("language_table").position.axes == "xy"


def test_an_array_in_pieces():
    pose = recorded(f"stanford_hydra_dataset{EXTERNAL}")
    assert pose.position.columns == (Columns("observation.state", 0, 3),)
    assert pose.rotation.columns == (Columns("observation.state", 7, 10),)
    pose = recorded("bc_z")
    assert pose.position.columns == (Columns("observation.present/xyz", 0, 3),)
    assert pose.rotation.columns == (Columns("observation.present/axis_angle", 0, 3),)


def test_two_arms_left_first():
    arms = dataset(f"utokyo_xarm_bimanual{EXTERNAL}").arms
    keys = [arm.columns[0].key for arm in arms]
    assert keys == ["observation.pose_l", "observation.pose_r"]
    joints = [arm.pose for arm in dataset("aloha_mobile").arms]
    assert joints == [
        Kinematics("viperx_300s", (Columns("observation.state", first, first + 6),))
        for first in (0, 7)
    ]
    assert sum(len(row.arms) == 2 for row in oxe.OXE_ROWS) == 2


def test_grippers_that_the_readers_of_others_took_wrongly():
    _, gripper = arm("taco_play")
    assert isinstance(gripper, Gripper)
    assert (gripper.column, gripper.closed_at, gripper.open_at) == (6, 0, 0.0807)
    _, gripper = arm("toto")
    assert isinstance(gripper, Gripper)
    assert (gripper.key, gripper.closed_at, gripper.open_at) == ("action.open_gripper", 0, 1)
    assert arm("berkeley_cable_routing")[1] == NoGripper(closed=1.0), "on the cable throughout"


def test_channel_orders_belong_to_views():
    swapped = {
        (row.name, view.key.removeprefix("observation."))
        for row in oxe.OXE_ROWS
        for view in row.views
        if view.channel_order == "bgr_swapped"
    }
    both = ("image", "wrist_image")
    assert swapped == {
        ("berkeley_autolab_ur5", "hand_image"),
        *((f"stanford_hydra_dataset{EXTERNAL}", key) for key in both),
        *(("utaustin_mutex", key) for key in both),
        *(("berkeley_fanuc_manipulation", key) for key in both),
        *(("fmb", key) for key in ("image_side_1", "image_wrist_1", "image_side_2")),
    }


def test_absent_cameras():
    row = dataset("bridge_dataset_oxe")
    assert row.views[1] == View("observation.image_3", present_key="episode_metadata.has_image_3")
    main = EpisodeFilter(key="episode_metadata.has_image_0", equals=True)
    assert row.keep_episodes == (main,), "an episode without the main camera is left out"
    assert max(len(row.views) for row in oxe.OXE_ROWS) == 3


def test_texts():
    droid = dataset("droid_oxe")
    assert (len(droid.instruction_keys), droid.instruction_choice) == (3, "any")
    assert droid.empty_text == "leave_out"
    assert dataset("language_table").text_form == "code_points"
    stated = {row.name: row.stated_text for row in oxe.OXE_ROWS if row.stated_text}
    assert set(stated) == {"uiuc_d3field", "mimic_play"}
    assert dataset("kuka").keep_episodes == (EpisodeFilter(key="success", equals=True),)
    (conq,) = dataset("conq_hose_manipulation").keep_episodes
    assert conq.pattern is not None
    assert conq.pattern.startswith("^(?!no")


@pytest.mark.parametrize(
    ("cells", "column", "message"),
    [
        ({"class": "states"}, "class", "'states' is not one of state, partial"),
        ({"class": "none"}, "pose", "a pose in class 'none'"),
        ({"confidence": "certain"}, "confidence", "not one of high, medium, low"),
        ({"robot": "ur5 sim"}, "robot", "'sim' behind 'ur5'; allowed is 'simulated'"),
        ({"hz": "?"}, "hz", "allowed with uneven only"),
        ({"hz": "10 odd"}, "hz", "'odd' behind '10'"),
        ({"hz": "fast"}, "hz", "could not convert"),
        ({"pose": "o.s[0:6] euler xyz"}, "pose", "'o.s[0:6]' is no array"),
        ({"pose": "o.s[6:9/7] euler xyz"}, "pose", "columns 6..8 are not among 7"),
        ({"pose": "o.s[0:6/8] euler xyz"}, "gripper", "o.s has 8 columns in one place, 7 here"),
        ({"pose": "o.s[0:6/7] eulr xyz"}, "pose", "'eulr' is no rotation"),
        ({"pose": "o.s[0:6/7]"}, "pose", "'' is no rotation"),
        ({"pose": "o.s[0:6/7] euler xyy"}, "pose", "'xyy' after a rotation"),
        ({"pose": "o.s[0:6/7] euler xyz cm"}, "pose", "'cm' after a rotation; allowed are mm"),
        ({"pose": "o.s[0:6/7] euler xyz mm mm"}, "pose", "each once"),
        ({"pose": "o.s[0:6/7] euler xyz lag"}, "pose", "'lag' takes 1 words, 0 follow"),
        ({"pose": "o.s[0:6/7] euler xyz lag -1"}, "pose", "'-1' is no number of frames"),
        ({"pose": "o.s[0:6/7] euler xyz bounds a[0/1] b[0/1]"}, "pose", "with yaw only"),
        ({"pose": "o.s[0:7/7] euler xyz"}, "pose", "4 columns"),
        ({"pose": "joints o.q[0:7/7]"}, "pose", "written joints ARRAY ROBOT"),
        ({"pose": "joints o.q[0:7/7] robbie"}, "pose", "robbie"),
        ({"gripper": "none"}, "gripper", "'none' is not written as none open"),
        ({"gripper": "o.s[5:7/7] closed 0 open 1"}, "gripper", "a gripper is one"),
        ({"gripper": "o.s[6/7] closed shut open 1"}, "gripper", "'shut' is no number"),
        ({"gripper": "o.s[6/7] closed 1 open 1"}, "gripper", "two different readings"),
        ({"gripper": "none open ; none open"}, "gripper", "2 grippers for 1 arms"),
        ({"views": "o.image first"}, "views", "'first' is no role"),
        ({"views": "o.a second ; o.b main"}, "views", "ordered main, wrist, second"),
        ({"views": "o.a main ; o.b wrist ; o.c wrist ; o.d wrist"}, "views", "allowed are 3"),
        ({"views": "o.a main rgb"}, "views", "not written as KEY ROLE [bgr]"),
        ({"text": "t ; empty skip"}, "text", "not written as empty leave_out"),
        ({"text": "t ; empty leave_out ; empty 'x'"}, "text", "has 2 policies"),
        ({"keep": "success"}, "keep", "not written as FEATURE is true"),
        ({"splits": "train (val"}, "splits", "not written as SPLIT"),
        ({"episodes": "many"}, "episodes", "'many' is not a number, ? or -"),
        ({"share": "?"}, "share", "'?' is not a number or -"),
        ({"frame": "table"}, "", "frame is 'table', allowed is one of base"),
        ({"pose": "-", "class": "none"}, "remarks", "says why here"),
    ],
)
def test_a_cell_that_is_not_in_the_language_is_named(cells, column, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        made(**cells)
    text = str(error.value)
    assert message in text
    assert column == "" or f"data/rows/oxe.csv, line 2 (s), column {column}: " in text
    assert "data/rows/oxe.csv" in text


def test_a_table_of_another_form_is_refused():
    line = ",".join(GOOD.values())
    with pytest.raises(ValueError, match="columns are"):
        oxe.read_lines("name,class\ns,state")
    with pytest.raises(ValueError, match="line 2: 18 cells, 17 are allowed"):
        oxe.read_lines(f"{HEADER}\n{line},more")
    with pytest.raises(ValueError, match="s is there 2 times"):
        oxe.read_lines(f"{HEADER}\n{line}\n{line}")


def test_named_mixtures_hold_rows_of_high_and_medium_confidence():
    for name, pairs in (PER_FRAMES | PER_SAMPLES).items():
        check_mixture(pairs)
        confidences = {DATASETS[row].confidence for row, _ in pairs}
        assert ("low" in confidences) == (name == "oxe_all_low")
        assert not {row for row, _ in pairs} & set(LEFT_OUT[name])
        assert all(LEFT_OUT[name].values())


def test_published_lists_are_complete_with_what_they_leave_out():
    sizes = {name: (len(pairs), len(LEFT_OUT[name])) for name, pairs in PER_FRAMES.items()}
    assert sizes == {"oxe_magic_soup": (22, 3), "oxe_magic_soup_plus": (25, 2), "rtx": (9, 2)}
    assert dict(PER_FRAMES["rtx"])["berkeley_cable_routing"] == 3.0
    assert dict(PER_FRAMES["oxe_magic_soup_plus"])["droid_oxe"] == 0.06
    assert set(LEFT_OUT["oxe_magic_soup"]) == {
        "roboturk",
        "nyu_door_opening_surprising_effectiveness",
        "cmu_stretch",
    }


def test_a_set_without_a_share_is_left_out_of_the_mixture_of_all():
    lines = oxe.read_lines(f"{HEADER}\n{','.join((GOOD | {'share': '-'}).values())}")
    assert left_out_of_all(lines, ()) == {"s": "its line states no share of the samples"}


def test_all_sets_are_in_the_mixture_of_all_or_left_out_of_it_by_name():
    for name, pairs in PER_SAMPLES.items():
        assert len(pairs) + len(LEFT_OUT[name]) == 87
    weights = dict(PER_SAMPLES["oxe_all"])
    assert "bridge_oxe" not in weights, "a copy of bridge_dataset"
    assert (weights["droid_oxe"], weights["kuka"]) == (303, 50)
    assert weights["bridge_data_msr"] == round(822**0.5)


def test_a_mixture_is_extended_to_half():
    pairs = extended((("AGIBOT", 3.0), ("Droid-Left", 1.0)))
    weights = dict(pairs)
    assert (weights["AGIBOT"], weights["Droid-Left"]) == (0.375, 0.125)
    assert sum(weights.values()) == pytest.approx(1)
    assert "droid_oxe" not in weights, "it is there as Droid-Left"
    named = {row for row, _ in mixture("xvla_pretrain_oxe")}
    assert not named & set(LEFT_OUT["xvla_pretrain_oxe"])
    assert len(named) == 7 + len(PER_SAMPLES["oxe_all"]) - 1


def test_fingerprints_of_the_table_differ():
    prints = [dataclasses.replace(row).fingerprint for row in oxe.OXE_ROWS]
    assert len(set(prints)) == len(prints)
