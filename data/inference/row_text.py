"""Writes the choices as a module with a complete row, each with its evidence as a comment."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping

from data.inference.cameras import view_list
from data.inference.choices import Choice
from data.inference.columns import (
    FIRST,
    JOINTS,
    ArmColumns,
    arms_of,
    joint_columns,
    side,
    state_names,
)
from data.inference.grippers import LOW, gripper_columns, ranges
from data.inference.motion import ACTION_TARGETS, DEG, NORMALISED, RAD, action_columns
from data.inference.nearest import nearest_domains, statistics
from data.inference.recording import Float64, Recording
from data.inference.rotations import SCALES

NUM_ACTIONS = 30  # of a chunk of the released weights, and of configs/models.py
LINE = 96
# questions whose answers decide which lines a row has; the others are filled in where they stand
SHAPE = ("state_key", "kind", "channels", "arms", "arm_order", "grippers", "targets", "unit",
         "position_unit", "rotation")  # fmt: skip
_PERCENT, _READING, _READING_PERCENT = "0..100", "reading", "hundred readings"
_SHARE = "-1..1"

# unit of a recorded column, as written -> unit after scaling
_AFTER = {RAD: "rad", DEG: "rad", NORMALISED: _SHARE, _PERCENT: "0..1"}
Choices = Mapping[str, Choice]
Lines = list[str]


def quoted(text: str) -> str:
    """Text as a Python literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


# units that data.parts.UNITS does not have, as they are written
_OWN_UNITS = {
    NORMALISED: f"Unit({quoted(NORMALISED)}, scale=0.01, becomes={quoted(_SHARE)})",
    _READING: 'Unit("reading", scale=1.0)',
    _READING_PERCENT: 'Unit("reading", scale=0.01)',
}


def row_source(recording: Recording, choices: Choices, *, command: str, domain: str) -> str:
    """Returns the text of a module with a row `ROW`.

    Args:
        recording: from which the choices come.
        choices: of `infer`.
        command: that wrote it, for the docstring.
        domain: name of the soft prompt's domain.

    Raises:
        ValueError: an answer names no column or no camera.
    """
    waiting = [n for n in SHAPE if n in choices and choices[n].is_open]
    head = [
        '"""A dataset row: every choice, and the evidence for it.',
        "",
        "A choice is stated by the files, measured in the numbers, or answered by you. A line with",
        "`fill_in` refuses to run until you replace it by a value.",
        '"""',
        "",
        *_wrapped(f"Written by: {command}"),
    ]
    if waiting:
        lines = ["from data.parts import fill_in", ""]
        lines += ["# The row is written once these are known: run the command again with them."]
        for name in waiting:
            lines += _comment(name, choices[name], "")
            lines += [_fill_in(name, choices[name])]
        return "\n".join([*head, *lines, ""])
    body = _fields(recording, choices, domain)
    code = "\n".join(body)
    return "\n".join([*head, *_imports(code), "", "ROW = DatasetSpec(", code, ")", ""])


def _imports(code: str) -> Lines:
    names = {
        "data.parts": ("Channel", "Unit", "fill_in"),
        "data.poses.arms": (
            *("Arm", "Columns", "Gripper", "NoGripper", "Pose", "Position", "Rotation"),
        ),
    }
    lines = []
    for module, parts in names.items():
        used = [part for part in parts if f"{part}(" in code.replace("NoGripper(", "No_(")]
        used += ["NoGripper"] if "NoGripper(" in code and "NoGripper" in parts else []
        if used:
            lines.append(f"from {module} import {', '.join(sorted(used, key=str.lower))}")
    return [*lines, "from data.spec import DatasetSpec"]


def _comment(name: str, choice: Choice, indent: str = "    ") -> Lines:
    value = f" {choice.value}" if choice.value else ""
    return _wrapped(f"{name}: {choice.certainty}{value}. {choice.evidence}", indent)


def _wrapped(text: str, indent: str = "") -> Lines:
    """Comment lines; text of a recording may hold line breaks, which must not end a comment."""
    mark = f"{indent}# "
    plain = " ".join(text.split())
    return textwrap.wrap(plain, LINE, initial_indent=mark, subsequent_indent=mark)


def _fill_in(name: str, choice: Choice) -> str:
    return f"fill_in({', '.join(map(quoted, (name, *choice.allowed)))})"


def _fields(recording: Recording, choices: Choices, domain: str) -> Lines:
    rate = choices["rate_hz"]
    hertz = rate.value or (f"{recording.rate_hz:g}" if recording.rate_hz else "")
    hertz = hertz or _fill_in("rate_hz", rate)
    key = choices["state_key"].value
    joints = choices["kind"].value == JOINTS
    read = [*recording.keys(key)]
    if joints and choices["targets"].value == ACTION_TARGETS:
        read.append(recording.action)
    widths = {array: recording.width(array) for array in read}
    return [
        f"    name={quoted(recording.name)},",
        f"    storage={quoted(recording.storage)},",
        f"    storage_name={quoted(recording.name)},",
        "    # a soft prompt of its own; a run gives the name an id (config.new_domains)",
        *_nearest(recording, choices, domain),
        f"    domain={quoted(domain)},",
        *_comment("state_key", choices["state_key"]),
        *_comment("kind", choices["kind"]),
        *(_joint_fields(recording, choices) if joints else _pose_fields(recording, choices)),
        *_comment("views", choices["views"]),
        f"    views={_views(recording, choices)},",
        *_comment("channel_order", choices["channel_order"]),
        f"    encoded_channel_order={_value('channel_order', choices)},",
        *_comment("rate_hz", rate),
        f"    rate_hz={_fill_in('rate_hz', rate) if rate.is_open else hertz},",
        f"    # {NUM_ACTIONS} actions of a chunk at the recorded rate",
        f"    window_s={NUM_ACTIONS} / {hertz},",
        "    index_margin=2,  # the last frame has no action behind it",
        "    delta_idx=(),  # absolute targets",
        "    mask_proprio_idx=(),  # the model sees every channel of the state",
        '    augment="jitter",  # for real cameras; "none" in simulation',
        *_text_fields(choices["instruction"], recording.text_key),
        *_split_fields(recording.splits),
        f"    widths={json.dumps(widths)},",
    ]


def _nearest(recording: Recording, choices: Choices, domain: str) -> Lines:
    near = nearest_domains(statistics(recording, choices))
    text = "; ".join(f"{one.domain} at {one.distance:.1f} ({one.evidence})" for one in near)
    return _wrapped(
        f"nearest released domains, no choice of this row: {text}. To begin from one: "
        f"config.new_domains={domain}={near[0].domain}",
        "    ",
    )


def _value(name: str, choices: Choices) -> str:
    choice = choices[name]
    return _fill_in(name, choice) if choice.is_open else quoted(choice.value)


def _views(recording: Recording, choices: Choices) -> str:
    if choices["views"].is_open:
        return _fill_in("views", choices["views"])
    return "(" + " ".join(f"{quoted(key)}," for key in view_list(recording, choices)) + ")"


def _split_fields(splits: tuple[str, ...]) -> Lines:
    return [f"    splits=({' '.join(f'{quoted(split)},' for split in splits)}),"] if splits else []


def _text_fields(choice: Choice, key: str) -> Lines:
    lines = _comment("instruction", choice)
    if choice.is_open:
        return [*lines, "    instruction_keys=(),",
                f"    fixed_instruction={_fill_in('instruction', choice)},"]  # fmt: skip
    if choice.value == "recorded" and key:
        return [*lines, f"    instruction_keys=({quoted(key)},),"]
    if choice.value == "recorded":
        return [*lines, "    instruction_keys=(),  # LeRobot's own place: task_index"]
    return [*lines, "    instruction_keys=(),", f"    fixed_instruction={quoted(choice.value)},"]


def _pieces(recording: Recording, key: str, columns: tuple[int, ...], lag: int = 0) -> str:
    """Columns in their order, as a tuple of `Columns`."""
    parts: list[tuple[str, int, int]] = []
    places = recording.places(key)
    for column in columns:
        array, inside = places[column]
        if parts and parts[-1][::2] == (array, inside):
            parts[-1] = (array, parts[-1][1], inside + 1)
        else:
            parts.append((array, inside, inside + 1))
    late = f", lag={lag}" if lag else ""
    return "(" + " ".join(f"Columns({quoted(k)}, {a}, {b}{late})," for k, a, b in parts) + ")"


def _joint_fields(recording: Recording, choices: Choices) -> Lines:
    key = choices["state_key"].value
    columns = joint_columns(recording, choices)
    lines = ["    arms=(),", '    rotation_layout="none",']
    lines += _comment("channels", choices["channels"])
    if "arm_order" in choices:
        lines += _comment("arm_order", choices["arm_order"])
    lines += [f"    joints={_pieces(recording, key, columns)},", '    proprio="measured",']
    lines += _comment("targets", choices["targets"])
    if choices["targets"].value == ACTION_TARGETS:
        own = action_columns(recording, choices)
        lines += [
            "    # the action of a frame is its first target, so it belongs to the next frame",
            f"    actions={_pieces(recording, recording.action, own, lag=1)},",
        ]
    lines += _comment("unit", choices["unit"])
    units = [_unit(recording, choices, column) for column in columns]
    units = [_OWN_UNITS.get(unit, quoted(unit)) for unit in units]
    lines += ["    units=(", *(f"        {unit}," for unit in units), "    ),"]
    lines += _comment("grippers", choices["grippers"])
    if "gripper_closed" in choices:
        lines += _comment("gripper_closed", choices["gripper_closed"])
    lines += ["    channels=("]
    lines += [f"        {_channel(recording, choices, column)}," for column in columns]
    return [*lines, "    ),", "    static_epsilon=0.0,  # a hand waits while its fingers close"]


def _unit(recording: Recording, choices: Choices, column: int) -> str:
    """The unit in which a column was recorded: a name of data.parts.UNITS, or one of ours.

    A gripper is left as it is beside joints in radians, else scaled to at most about 1.
    """
    unit = choices["unit"].value
    if column not in gripper_columns(choices):
        return unit
    if unit == RAD:
        return _READING
    key = choices["state_key"].value
    readings = [rows[:, column] for rows in recording.episodes(key)]
    if choices["targets"].value == ACTION_TARGETS:
        place = action_columns(recording, choices)[joint_columns(recording, choices).index(column)]
        readings += [rows[:, place] for rows in recording.episodes(recording.action)]
    low, high = ranges(readings)
    return _PERCENT if low >= -5 and 20 < high <= 105 else _READING_PERCENT


def _channel(recording: Recording, choices: Choices, column: int) -> str:
    key = choices["state_key"].value
    names = recording.column_names(key)
    name = names[column] if names else f"joint_{column}"
    grippers = gripper_columns(choices)
    after = _AFTER.get(_unit(recording, choices, column), "unknown")
    if column not in grippers:
        return f"Channel({quoted(name)}, {quoted(after)})"
    closed = choices["gripper_closed"]
    if closed.is_open:
        readings = [f"gripper_closed: {end} readings of {name}" for end in ("low", "high")]
        meanings = [f'fill_in({quoted(text)}, "closed", "open")' for text in readings]
    else:
        low = closed.value.split(",")[grippers.index(column)] == LOW
        meanings = ['"closed"', '"open"'] if low else ['"open"', '"closed"']
    return f"Channel({quoted(name)}, {quoted(after)}, low={meanings[0]}, high={meanings[1]})"


def _pose_fields(recording: Recording, choices: Choices) -> Lines:
    arms = sorted(arms_of(recording, choices), key=lambda arm: arm.position)
    if len(arms) == 2 and choices["arm_order"].value != FIRST[0]:
        arms = arms[::-1]
    lines = _comment("arms", choices["arms"])
    for name in ("arm_order", "position_unit", "rotation", "grippers", "gripper_closed"):
        lines += _comment(name, choices[name]) if name in choices else []
    lines += ["    # the left arm first" if len(arms) == 2 else "    # one arm", "    arms=("]
    for arm in arms:
        lines += _arm(recording, choices, arm)
    return [
        *lines,
        "    ),",
        '    rotation_layout="interleaved",  # of a new domain; LIBERO alone is contiguous',
        "    # the poses are those that the state has: the next ones are the targets",
        '    proprio="measured",',
        "    static_epsilon=1e-5,  # m: samples that stand still in their first step are left out",
    ]


def _arm(recording: Recording, choices: Choices, arm: ArmColumns) -> Lines:
    key = choices["state_key"].value
    kind, _, order = choices["rotation"].value.partition(" ")
    scale = SCALES[choices["position_unit"].value]
    position = _pieces(recording, key, arm.position)
    scaled = "" if scale == 1 else f", scale={scale}"
    return [
        "        Arm(",
        "            pose=Pose(",
        f"                position=Position(columns={position}{scaled}),",
        "                rotation=Rotation(",
        f"                    kind={quoted(kind)},",
        f"                    order={quoted(order)},",
        f"                    columns={_pieces(recording, key, arm.rotation)},",
        "                ),",
        "            ),",
        f"            gripper={_gripper(recording, choices, arm)},",
        "        ),",
    ]


def _gripper(recording: Recording, choices: Choices, arm: ArmColumns) -> str:
    key = choices["state_key"].value
    names = state_names(recording, choices)
    columns = gripper_columns(choices)
    arms = len(arms_of(recording, choices))
    mine = [c for c in columns if arms == 1 or (names and side(names[c]) == arm.side)]
    if arms == 2 and not names:
        after = [c for c in columns if c > arm.rotation[-1]]
        mine = after[:1]
    if not mine:
        return "NoGripper()"
    low, high = _ends([rows[:, mine[0]] for rows in recording.episodes(key)])
    closed = choices["gripper_closed"]
    if closed.is_open:
        levels = f"{quoted(f'{low:g}')}, {quoted(f'{high:g}')}"
        ends = [
            f"{end}=fill_in({quoted(f'gripper_closed: {end} of column {mine[0]}')}, {levels})"
            for end in ("closed_at", "open_at")
        ]
    else:
        is_low = closed.value.split(",")[columns.index(mine[0])] == LOW
        levels = (low, high) if is_low else (high, low)
        ends = [f"{e}={v:g}" for e, v in zip(("closed_at", "open_at"), levels, strict=True)]
    array, inside = recording.places(key)[mine[0]]
    return f"Gripper(key={quoted(array)}, column={inside}, {', '.join(ends)})"


def _ends(parts: list[Float64]) -> tuple[float, float]:
    """Ends of a gripper's readings; 0 and 1, or 0 and 100, where these are nearly reached."""
    low, high = ranges(parts)
    for most in (1.0, 100.0):
        if abs(low) <= 0.1 * most and abs(high - most) <= 0.05 * most:
            return 0.0, most
    return float(f"{low:.4g}"), float(f"{high:.4g}")
