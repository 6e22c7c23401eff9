"""Names that clients give their fields: other projects' names, cameras of a domain, unknown ones.

Everything is asked over both doors' codecs.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.xvla_jax.serving.fakes import WIDTH, FakeEngine, dumps
from xvla_jax.serving import codecs
from xvla_jax.serving.codecs import decode_array, decode_object
from xvla_jax.serving.limits import RequestError
from xvla_jax.serving.request import ActRequest, parse_request
from xvla_jax.serving.websocket import array_of_message

RULES = dataclasses.replace(FakeEngine().rules, cameras={3: ("front", "wrist")})
STATE = np.arange(WIDTH, dtype=np.float32)


def image(value: int) -> np.ndarray:
    """One color; it identifies the slot."""
    return np.full((4, 6, 3), value, np.uint8)


def over_http(fields: dict[str, Any], rules: Any = RULES) -> ActRequest:
    plain = {k: _json(v) for k, v in fields.items()}
    return parse_request(decode_object(json.dumps(plain).encode()), rules, decode_array)


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _json(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_json(v) for v in value]
    return dumps(value) if isinstance(value, (np.ndarray, np.generic)) else value


def over_websocket(fields: dict[str, Any], rules: Any = RULES) -> ActRequest:
    parsed = codecs.unpack(codecs.pack(fields))
    return parse_request(parsed, rules, array_of_message)


doors = pytest.mark.parametrize("door", [over_http, over_websocket])
Door = Callable[..., ActRequest]


def fields(**changes: Any) -> dict[str, Any]:
    good = {
        "language_instruction": "push",
        "proprio": STATE,
        "image0": image(1),
        "image1": image(2),
        "domain_id": 3,
    }
    return {name: value for name, value in (good | changes).items() if value is not None}


def shown(parsed: ActRequest) -> list[int]:
    return [int(view[0, 0, 0]) for view in parsed.observation["images"]]


NO_IMAGES = {"image0": None, "image1": None}
OTHERS: dict[str, dict[str, Any]] = {
    "lerobot": {
        "language_instruction": None,
        "task": "push",
        "proprio": None,
        "observation.state": STATE,
        **NO_IMAGES,
        "observation.images.wrist": image(2),
        "observation.images.front": image(1),
    },
    "droid": {
        "language_instruction": None,
        "prompt": "push",
        "proprio": None,
        "observation/joint_position": STATE[:-1],
        "observation/gripper_position": STATE[-1:],
        **NO_IMAGES,
        "observation/exterior_image_1_left": image(1),
        "observation/wrist_image_left": image(2),
    },
    "openvla-oft": {
        "language_instruction": None,
        "instruction": "push",
        "proprio": None,
        "state": STATE,
        **NO_IMAGES,
        "full_image": image(1),
        "wrist_image": image(2),
    },
    "numbered": {**NO_IMAGES, "image_1": image(2), "image_0": image(1)},
    "a map by camera": {**NO_IMAGES, "images": {"wrist": image(2), "front": image(1)}},
    "a stack": {**NO_IMAGES, "images": np.stack([image(1), image(2)])},
    "the camera alone": {**NO_IMAGES, "wrist": image(2), "front": image(1)},
}


@doors
@pytest.mark.parametrize("client", OTHERS)
def test_the_names_of_other_projects(door: Door, client: str) -> None:
    parsed = door(fields(**OTHERS[client]))
    assert parsed.observation["instruction"] == "push"
    np.testing.assert_array_equal(parsed.observation["proprio"], STATE)
    assert shown(parsed) == [1, 2]
    assert parsed.warnings == ()


def test_openvla_encodes_all_fields_as_one_text() -> None:
    inner = {
        "instruction": "push",
        "image": dumps(image(1)),
        "state": STATE.tolist(),
        "domain_id": 3,
        "unnorm_key": "bridge_orig",
    }
    parsed = over_http({"encoded": json.dumps(inner)})
    assert shown(parsed) == [1]
    assert "unknown field 'unnorm_key' was ignored" in parsed.warnings
    for more in ({"steps": 3}, {"encoded": {}}, {"encoded": "[]"}, {"encoded": "{"}):
        with pytest.raises(RequestError) as refusal:
            over_http({"encoded": json.dumps(inner)} | more)
        assert (refusal.value.status, refusal.value.field) == (400, "encoded")


def _file(kind: str) -> str:
    data = io.BytesIO()
    Image.fromarray(image(200)).save(data, kind)
    return base64.b64encode(data.getvalue()).decode()


@doors
@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_files_as_base64(door: Door, kind: str) -> None:
    text = _file(kind)
    folded = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    for form in (text, folded, f"data:image/{kind};base64,{text}"):
        assert abs(shown(door(fields(image0=form)))[0] - 200) <= 4


@doors
@pytest.mark.parametrize(
    "text",
    ["data:image/gif;base64,R0lGODlh", "data:text/plain,hi", "/9j/etc", "iVBORw0KGgo!", "front.png",
     "file:///etc/passwd", "data:image/png;base64,"],
)  # fmt: skip
def test_a_text_that_is_no_image_names_the_forms(door: Door, text: str) -> None:
    with pytest.raises(RequestError) as refusal:
        door(fields(image1=text))
    assert (refusal.value.status, refusal.value.field) == (400, "image1")
    assert "base64" in refusal.value.allowed


@doors
@pytest.mark.parametrize(
    "domain",
    [np.int64(3), np.int32(3), np.array(3), np.array([3]), np.float64(3), "3", 3.0],
    ids=lambda d: f"{type(d).__name__}{np.shape(d)}",
)
def test_a_domain_as_numpy_writes_it(door: Door, domain: Any) -> None:
    parsed = door(fields(domain_id=domain, steps=np.int64(2)))
    assert parsed.observation["domain_id"] == 3
    assert type(parsed.observation["domain_id"]) is int
    assert parsed.steps == 2


def test_a_domain_as_json_numpy_in_each_of_its_forms() -> None:
    for text in (dumps(np.int64(3)), json.loads(dumps(np.int64(3))), [3]):
        assert over_http(fields(domain_id=text)).observation["domain_id"] == 3


@doors
@pytest.mark.parametrize("domain", [np.array([3, 3]), np.float64(2.5), np.bool_(True), [[3]], {}])
def test_what_is_no_domain(door: Door, domain: Any) -> None:
    with pytest.raises(RequestError) as refusal:
        door(fields(domain_id=domain))
    assert refusal.value.field.startswith("domain_id")


@doors
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"task": "pull"}, "instruction"),
        ({"observation.state": STATE}, "proprio"),
        ({"observation/joint_position": STATE[:-1], "observation/gripper_position": STATE[-1:]},
         "proprio"),
        ({"observation.images.front": image(3)}, "image0"),
        ({"image_1": image(3)}, "image1"),
        ({"images": {"front": image(3)}}, "image0"),
        ({"images": [image(3)]}, "images"),
    ],
)  # fmt: skip
def test_two_names_of_one_thing_are_refused(door: Door, change: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as refusal:
        door(fields(**change))
    assert (refusal.value.status, refusal.value.field) == (400, field)
    assert refusal.value.value
    assert refusal.value.allowed


@doors
def test_half_of_a_state_is_refused(door: Door) -> None:
    change = {"proprio": None, "observation/joint_position": STATE}
    with pytest.raises(RequestError) as refusal:
        door(fields(**change))
    assert refusal.value.value == "observation/joint_position alone"
    assert "observation/gripper_position" in refusal.value.allowed


@doors
def test_a_camera_of_another_robot_is_named(door: Door) -> None:
    top = {"observation.images.top": image(9)}
    assert door(fields(**top)).warnings == ("unknown field 'observation.images.top' was ignored",)
    with pytest.raises(RequestError) as refusal:
        door(fields(**NO_IMAGES, **top))
    assert refusal.value.value == "ignored: observation.images.top"
    assert "front, wrist" in refusal.value.allowed
    with pytest.raises(RequestError) as refusal:
        door(fields(**NO_IMAGES, images={"front": image(1), "top": image(2)}))
    assert (refusal.value.field, refusal.value.value) == ("images", "top")
    assert "front, wrist" in refusal.value.allowed


@doors
def test_a_lone_wrist_camera_is_refused_by_name_and_warned_about_by_place(door: Door) -> None:
    """By place it is read as the first view, as the released server does."""
    parsed = door(fields(image0=None))
    assert shown(parsed) == [2]
    assert parsed.warnings == (
        "image1 was sent without image0 (front) before it; its place decides, so it was read as "
        "view 0",
    )
    with pytest.raises(RequestError) as refusal:
        door(fields(**NO_IMAGES, **{"observation.images.wrist": image(2)}))
    assert refusal.value.field == "observation.images.wrist"
    assert refusal.value.value == "no image of image0 (front) before it"


@doors
def test_fewer_and_more_images_than_the_domain_was_trained_with(door: Door) -> None:
    parsed = door(fields(image1=None))
    assert parsed.warnings == (
        "no image was sent for image1 (wrist), which this domain was trained with",
    )
    parsed = door(fields(image2=image(3)))
    assert shown(parsed) == [1, 2, 3]
    assert "trained with 2 cameras, front, wrist" in parsed.warnings[0]
    assert door(fields(image1=None, domain_id=0)).warnings == ()  # nobody knows its cameras


@doors
def test_the_third_image_is_image2_whatever_a_camera_is_called(door: Door) -> None:
    """LeRobot's LIBERO calls its two cameras image and image2."""
    rules = dataclasses.replace(RULES, cameras={3: ("image", "image2")})
    parsed = door(fields(image1=None, image2=image(2)), rules)
    assert "image2 was sent without image1 (image2) before it" in parsed.warnings[0]
    lerobot = {"observation.images.image2": image(2), "observation.images.image": image(1)}
    parsed = door(fields(**NO_IMAGES, **lerobot), rules)
    assert (shown(parsed), parsed.warnings) == ([1, 2], ())


@doors
def test_warnings_are_bounded_in_number_and_length(door: Door) -> None:
    parsed = door(fields(**{f"{'x' * 1000}{i}": i for i in range(50)}))
    assert len(parsed.warnings) == 9
    assert parsed.warnings[-1] == "42 more unknown fields were ignored"
    assert max(map(len, parsed.warnings)) < 100


@doors
def test_a_missing_field_names_what_was_sent_instead(door: Door) -> None:
    with pytest.raises(RequestError) as refusal:
        door(fields(language_instruction=None, instructions="push"))
    assert refusal.value.field == "language_instruction"
    assert refusal.value.value == "ignored: instructions"
    with pytest.raises(RequestError) as refusal:
        door(fields(domain_id=None, domain=3, images={"a": image(1)}))
    assert refusal.value.field == "domain_id"
    assert refusal.value.value == "ignored: domain"


@doors
def test_bytes_that_became_a_text_are_warned_about(door: Door) -> None:
    assert "is it bytes" in door(fields(language_instruction="b'push'")).warnings[0]
