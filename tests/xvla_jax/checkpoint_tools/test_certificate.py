"""Certificates: which plans they allow, of which model, and that an edit is seen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fake_gcs import FakeStorage
from xvla_jax import buckets
from xvla_jax.checkpoint_tools.certificate import (
    SHARE,
    Certificate,
    Drift,
    Entry,
    Limits,
    Success,
    certificate_path,
    check_plan,
    read_certificate,
    sealed,
    store_certificate,
)
from xvla_jax.errors import CertificateError
from xvla_jax.plans import PLANS

_MODEL, _SEAL = "ab" * 32, "cd" * 32
_LIMITS = Limits(drift=0.25, flips=0.01)
_NEAR = {
    "left position": Drift("mm", mean=0.9, p99=3.0, worst=4.0, own_error=9.0),
    "left gripper": Drift(SHARE, mean=0.002, p99=0.0, worst=1.0, own_error=0.01),
}
_FAR = _NEAR | {"left position": Drift("mm", mean=2.6, p99=9.0, worst=12.0, own_error=9.0)}


def _entry(name: str, drift: dict[str, Drift], success: dict[str, Success] | None = None) -> Entry:
    return Entry(PLANS[name].to_dict(), {"franka": drift}, success or {}, ()).checked(_LIMITS)


def _write(folder: Path, **changes: Any) -> dict[str, Any]:
    certificate = Certificate(
        schema=1,
        model_sha256=_MODEL,
        dtype="float32",
        device="cpu cpu",
        frames={"libero_demos": 64},
        seed=0,
        limits=_LIMITS,
        plans={"frozen3": _entry("frozen3", _NEAR), "exact1": _entry("exact1", _FAR)},
        made_by={"jax": "0"},
    )
    content = sealed(dataclasses.replace(certificate, **changes))
    certificate_path(folder, "float32").write_text(json.dumps(content))
    return content


def _check(name: str, folder: Path, model: str = _MODEL, dtype: str = "float32") -> str | None:
    return check_plan(PLANS[name], folder, model_sha256=model, dtype=dtype)


def test_a_plan_within_limits_is_allowed_for_its_model_alone(tmp_path: Path) -> None:
    content = _write(tmp_path)
    assert _check("frozen3", tmp_path) == content["seal"]
    assert read_certificate(certificate_path(tmp_path, "float32"))[0].frames == {"libero_demos": 64}
    with pytest.raises(CertificateError, match=f"is of model {_MODEL[:16]}; this one is 0000"):
        _check("frozen3", tmp_path, model="0" * 64)
    with pytest.raises(
        CertificateError, match=r"has no certificate .*sampler_certificate.bfloat16"
    ):
        _check("frozen3", tmp_path, dtype="bfloat16")


def test_a_certificate_in_a_bucket_is_read_there(tmp_path: Path, lab: FakeStorage) -> None:
    folder = buckets.place_of("gs://lab/policy")
    missing = r"no certificate \(gs://lab/policy/sampler_certificate.float32.json\)"
    with pytest.raises(CertificateError, match=missing):
        check_plan(PLANS["frozen3"], folder, model_sha256=_MODEL, dtype="float32")
    content = _write(tmp_path)
    store_certificate(
        certificate_path(folder, "float32"), certificate_path(tmp_path, "float32").read_bytes()
    )
    assert lab.objects.keys() == {"policy/sampler_certificate.float32.json"}
    seal = check_plan(PLANS["frozen3"], folder, model_sha256=_MODEL, dtype="float32")
    assert seal == content["seal"]


def test_the_default_plan_needs_none(tmp_path: Path) -> None:
    assert _check("exact10", tmp_path) is None


def test_a_plan_beyond_its_limits_is_refused_with_its_numbers(tmp_path: Path) -> None:
    _write(tmp_path)
    message = "left position of domain franka drifts by 2.6 mm; at most 25% of .* own error, 9"
    with pytest.raises(CertificateError, match=message):
        _check("exact1", tmp_path)
    with pytest.raises(CertificateError, match="has no plan frozen10 as it is now; it has frozen3"):
        _check("frozen10", tmp_path)


def test_a_row_that_changed_since_is_another_plan(tmp_path: Path) -> None:
    entry = dataclasses.replace(
        _entry("frozen3", _NEAR), plan=PLANS["frozen3"].to_dict() | {"refresh": [0, 1]}
    )
    _write(tmp_path, plans={"frozen3": entry})
    with pytest.raises(CertificateError, match="has no plan frozen3 as it is now"):
        _check("frozen3", tmp_path)


def test_limits() -> None:
    flips = _NEAR | {"left gripper": Drift(SHARE, 0.02, 1.0, 1.0, 0.01)}
    assert (
        "left gripper of domain franka differs in 2.00% of rows"
        in _entry("exact3", flips).beyond[0]
    )
    lower = Success(200, default=190, plan=170, difference=(-0.1, -0.15, -0.05), receipt=_SEAL)
    assert "shown to be lower" in _entry("exact3", _NEAR, {"quickstart": lower}).beyond[0]
    unsure = dataclasses.replace(lower, plan=186, difference=(-0.02, -0.06, 0.02))
    assert _entry("exact3", _NEAR, {"quickstart": unsure}).beyond == ()


def test_an_edit_breaks_the_seal(tmp_path: Path) -> None:
    content = _write(tmp_path)
    path = certificate_path(tmp_path, "float32")
    content["plans"]["exact1"]["beyond"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(CertificateError, match="changed after it was written"):
        _check("exact1", tmp_path)
    for text in ("[]", "{}", '{"seal": 1}'):
        path.write_text(text)
        with pytest.raises(CertificateError, match="no certificate with a seal"):
            _check("frozen3", tmp_path)


def test_a_field_that_does_not_belong_is_named(tmp_path: Path) -> None:
    _write(tmp_path, device=3)
    with pytest.raises(CertificateError, match="device"):
        _check("frozen3", tmp_path)
