"""The client: refuses other conventions by name, asks again within bounds, and then says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from eval.client.remote import ContractMismatchError, PolicyUnavailableError, RemotePolicy
from eval.client.transports import TRANSPORTS, RemoteError, RequestRefusedError, TryAgainError
from eval.pictures import BICUBIC
from eval.robot.controller import HoldExpiredError, HoldPose
from eval.tasks.table import task_contract, task_spec

EXPECTED = task_contract(task_spec("quickstart"))
INFO = {
    "model": "m1",
    "model_sha256": "m1" * 32,
    "contracts": {
        "3": {"action_space": "ee6d", **EXPECTED, "views": list(EXPECTED["views"])},
        "0": {**EXPECTED, "domain_id": 0},
    },
    "num_actions": 30,
    "action_width": 20,
    "image_size": 8,
    "resample": BICUBIC,
    "limits": {"deadline_ms": 4000},
    "prefix": {"rows": 30, "domains": [3]},
}


class _Wire:
    """A transport whose answers are given: exceptions are raised, functions called."""

    def __init__(self, *answers: Any, info: Mapping[str, Any] = INFO) -> None:
        self.answers = list(answers)
        self.served = info
        self.asked: list[Mapping[str, Any]] = []
        self.closed = 0

    def info(self) -> dict[str, Any]:
        return dict(self.served)

    def act(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        self.asked.append(fields)
        answer = self.answers.pop(0) if self.answers else {}
        if isinstance(answer, Exception):
            raise answer
        good = {"actions": np.ones((30, 20)), "model": "m1", "request_id": fields["request_id"]}
        return {**good, **answer}

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def open_policy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[RemotePolicy, list[float]]]:
    def make(wire: Any, **options: Any) -> tuple[RemotePolicy, list[float]]:
        slept: list[float] = []
        monkeypatch.setitem(TRANSPORTS, "http", lambda *_, **__: wire)  # pyright: ignore[reportArgumentType] a dict
        options = {"expected": EXPECTED, "sleep": slept.append, **options}
        return RemotePolicy("http://robot:1", **options), slept

    return make


def observation(**changes: Any) -> dict[str, Any]:
    images = [np.full((6, 8, 3), i, np.uint8) for i in range(2)]
    return {
        "images": images, "instruction": "pick", "proprio": np.zeros(20), "domain_id": 3, **changes
    }  # fmt: skip


def test_door_two(open_policy: Any) -> None:
    wire = _Wire()
    policy, slept = open_policy(wire, steps=4)
    chunks = policy.act([observation(), observation(instruction="push")], seed=[7, 8])
    assert (chunks.shape, chunks.dtype) == ((2, 30, 20), np.float32)
    assert [f["seed"] for f in wire.asked] == [7, 8]
    assert [f["language_instruction"] for f in wire.asked] == ["pick", "push"]
    assert (wire.asked[0]["steps"], wire.asked[0]["deadline_ms"]) == (4, 4000)
    assert wire.asked[0]["image1"].shape == (6, 8, 3)
    assert not slept
    assert policy.policy_hash == "m1" * 32
    assert policy.contract["views"] == EXPECTED["views"]


@pytest.mark.parametrize("field", sorted(set(EXPECTED) - {"domain_id"}))
def test_another_contract_is_refused_by_the_name_of_its_field(open_policy: Any, field: str) -> None:
    with pytest.raises(ContractMismatchError, match=f"{field}: server .*, robot 'other'"):
        open_policy(_Wire(), expected={**EXPECTED, field: "other"})


CHANNELS = [
    {"name": "pan", "unit": "deg", "low": "", "high": ""},
    {"name": "grip", "unit": "deg", "low": "the robot's own", "high": "the robot's own"},
]
STATING = {**INFO, "contracts": {"3": {**INFO["contracts"]["3"], "channels": CHANNELS}}}


@pytest.mark.parametrize(
    "channels", [CHANNELS, ["pan", "grip"], ["pan", {"name": "grip", "unit": "deg"}]]
)
def test_what_the_robot_states_of_its_channels_is_compared(open_policy: Any, channels: Any) -> None:
    policy, _ = open_policy(_Wire(info=STATING), expected={**EXPECTED, "channels": channels})
    assert policy.contract["channels"] == tuple(CHANNELS)


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        (["grip", "pan"], r"channels\[0\] 'pan', name: server 'pan', robot 'grip'; channels\[1\]"),
        ([{"unit": "rad"}, {}], r"channels\[0\] 'pan', unit: server 'deg', robot 'rad'"),
        (["pan", {"high": "closed"}],
         r"channels\[1\] 'grip', high: server \"the robot's own\", robot 'closed'"),
        (["pan"], "channels: server 2 of them, robot 1 of them"),
    ],
)  # fmt: skip
def test_another_channel_is_refused_by_name(open_policy: Any, channels: Any, message: str) -> None:
    with pytest.raises(ContractMismatchError, match=message):
        open_policy(_Wire(info=STATING), expected={**EXPECTED, "channels": channels})


def test_a_server_that_does_not_know_its_channels_is_refused_where_the_robot_states_them(
    open_policy: Any,
) -> None:
    with pytest.raises(ContractMismatchError, match="channels: server unknown, robot 2 of them"):
        open_policy(_Wire(), expected={**EXPECTED, "channels": CHANNELS})


def test_a_domain_that_is_not_served(open_policy: Any) -> None:
    with pytest.raises(ContractMismatchError, match=r"domain_id: the robot is 5, .* for 0, 3"):
        open_policy(_Wire(), expected={**EXPECTED, "domain_id": 5})
    with pytest.raises(ContractMismatchError, match="contracts for none"):
        open_policy(_Wire(info={"model": "openpi"}))


def test_another_model_in_the_middle_is_refused(open_policy: Any) -> None:
    policy, _ = open_policy(_Wire({}, {"model": "m2"}))
    policy.act([observation()], seed=[0])
    with pytest.raises(ContractMismatchError, match="model: m1 at the beginning, now m2"):
        policy.act([observation()], seed=[0])


def test_it_asks_again_and_obeys_retry_after(open_policy: Any) -> None:
    policy, slept = open_policy(_Wire(TryAgainError("gone"), TryAgainError("busy", 2.0)))
    assert policy.act([observation()], seed=[0]).shape == (1, 30, 20)
    assert 0.05 <= slept[0] <= 0.15
    assert slept[1] == 2.0


def test_then_it_gives_up(open_policy: Any) -> None:
    wire = _Wire(*[TryAgainError("gone")] * 9)
    policy, slept = open_policy(wire, retries=2)
    with pytest.raises(PolicyUnavailableError, match="no answer in 3 attempts; the last: gone"):
        policy.act([observation()], seed=[0])
    assert (len(wire.asked), len(slept)) == (3, 2)


def test_a_refusal_is_not_asked_again(open_policy: Any) -> None:
    wire = _Wire(RequestRefusedError(400, "proprio cannot be used", {"field": "proprio"}))
    policy, _ = open_policy(wire)
    with pytest.raises(RequestRefusedError, match="field proprio"):
        policy.act([observation()], seed=[0])
    assert len(wire.asked) == 1


def test_the_answer_to_another_request_is_dropped(open_policy: Any) -> None:
    wire = _Wire({"request_id": "older", "actions": np.zeros((30, 20))})
    policy, _ = open_policy(wire)
    assert policy.act([observation()], seed=[0]).min() == 1.0
    assert (len(wire.asked), wire.closed) == (2, 1)


@pytest.mark.parametrize("chunk", [np.zeros((30, 7)), np.zeros((4, 20)), np.full((30, 20), np.nan)])
def test_a_chunk_of_another_form_is_an_error(open_policy: Any, chunk: np.ndarray) -> None:
    policy, _ = open_policy(_Wire({"actions": chunk}))
    with pytest.raises(RemoteError, match=r"the chunk is .*\(30, 20\) were announced"):
        policy.act([observation()], seed=[0])


def test_images_are_resized_and_encoded_here(open_policy: Any) -> None:
    wire = _Wire()
    policy, _ = open_policy(wire, resize=True, encoding="png")
    policy.act([observation()], seed=[0])
    assert wire.asked[0]["image0"].tobytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(ValueError, match="resizes with filter 2, this client only with 3"):
        open_policy(_Wire(info={**INFO, "resample": 2}), resize=True)
    with pytest.raises(ValueError, match="resizes images by 'pad', this client only by 'stretch'"):
        open_policy(_Wire(info={**INFO, "resize": "pad"}), resize=True)


def test_a_prefix_goes_only_where_it_is_known(open_policy: Any) -> None:
    wire = _Wire()
    policy, _ = open_policy(wire)
    policy.act([observation(prefix=np.ones((4, 20)), prefix_committed=2)], seed=[0])
    assert wire.asked[0]["prefix"].dtype == np.float32
    assert wire.asked[0]["prefix_committed"] == 2
    policy.act([observation(prefix=np.ones((4, 20)))], seed=[0])
    assert wire.asked[1]["prefix_committed"] == 4
    with pytest.raises(ValueError, match="'trained': the server's checkpoint was not trained for"):
        policy.act([observation(prefix_mode="trained")], seed=[0])
    knowing = _Wire(info={**INFO, "prefix": {"rows": 30, "max_delay": 4, "domains": [3]}})
    policy, _ = open_policy(knowing)
    policy.act([observation(prefix=np.ones((2, 20)), prefix_mode="trained")], seed=[0])
    assert knowing.asked[0]["prefix_mode"] == "trained"
    older, _ = open_policy(_Wire(info={k: v for k, v in INFO.items() if k != "prefix"}))
    with pytest.raises(ValueError, match="takes no prefix for domain 3"):
        older.act([observation(prefix=np.ones((4, 20)))], seed=[0])


def test_arguments_that_mean_nothing(open_policy: Any) -> None:
    policy, _ = open_policy(_Wire())
    with pytest.raises(ValueError, match="domain 5 for a policy of domain 3"):
        policy.act([observation(domain_id=5)], seed=[0])
    with pytest.raises(ValueError, match=r"seed -1; 0 \.\. 4294967295"):
        policy.act([observation()], seed=[-1])
    with pytest.raises(ValueError, match="1 observations and 2 seeds"):
        policy.act([observation()], seed=[0, 1])
    with pytest.raises(ValueError, match="begin with one of http, https, ws, wss"):
        RemotePolicy("robot:8010", expected=EXPECTED)
    with pytest.raises(ValueError, match="encoding 'gif'"):
        open_policy(_Wire(), encoding="gif")


def test_nobody_listens() -> None:
    """Real sockets: a port of this machine that nothing is bound to."""
    for scheme in ("http", "ws"):
        with pytest.raises(PolicyUnavailableError, match="no answer in 2 attempts"):
            RemotePolicy(f"{scheme}://127.0.0.1:9", expected=EXPECTED, retries=1, timeout_s=1.0)


def test_hold_repeats_the_last_row_and_ends() -> None:
    hold = HoldPose(longest_steps=2)
    with pytest.raises(HoldExpiredError, match="no pose was commanded yet"):
        hold.hold()
    row = np.arange(20.0)
    hold.commanded(row)
    row[:] = -1
    assert hold.hold().tolist() == hold.hold().tolist() == list(range(20))
    with pytest.raises(HoldExpiredError, match="held for 2 control steps"):
        hold.hold()
    hold.commanded(np.ones(20))
    assert hold.hold()[9] == 1.0


_NAMED = INFO | {"domain_names": {"libero": 3, "Bridge": 0}}
_BY_NAME = {"domain": "libero", **{k: v for k, v in EXPECTED.items() if k != "domain_id"}}


def test_a_domain_may_be_named(open_policy: Any) -> None:
    policy, _ = open_policy(_Wire(info=_NAMED), expected=_BY_NAME)
    assert policy.domain_id == 3
    assert policy.contract["domain_id"] == 3
    for expected, message in (
        ({**_BY_NAME, "domain": "libro"}, r"the robot is 'libro', the server has Bridge, libero"),
        ({**_BY_NAME, "domain_id": 0}, r"domain_id: the robot is 0, the server has 'libero' as 3"),
    ):
        with pytest.raises(ContractMismatchError, match=message):
            open_policy(_Wire(info=_NAMED), expected=expected)
    with pytest.raises(ContractMismatchError, match="the server has no names"):
        open_policy(_Wire(), expected=_BY_NAME)


def test_channels_without_data_are_warned_of_or_refused(
    open_policy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    channels = [{"name": f"channel of {i}"} for i in range(20)]
    contract = {**INFO["contracts"]["3"], "unrecorded": [9], "channels": channels}
    info = INFO | {"contracts": {"3": contract}}
    with pytest.raises(
        ContractMismatchError, match=r"unrecorded: server \(9,\), robot \(\) \(channel of 9\)"
    ):
        open_policy(_Wire(info=info), expected=EXPECTED)
    open_policy(_Wire(info=info), expected={**EXPECTED, "unrecorded": [9]})
    assert not caplog.records, "the robot knows"
    open_policy(_Wire(info=info), expected={k: EXPECTED[k] for k in ("domain_id", "views")})
    assert "do not record channel of 9" in caplog.text
