"""Certificates of sampler plans: what a plan changes in one checkpoint's actions, measured.

``python -m scripts.certify_sampler`` writes the file into the checkpoint's folder. It names the
model by its hash, so it says nothing of weights that were trained further, and is sealed by the
SHA-256 of its content like a receipt. A plan may be used where its certificate says that it keeps
the limits; `exact10` is X-VLA's own sampler and needs none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

import pydantic
from pydantic import Field

from xvla_jax import buckets
from xvla_jax.errors import CertificateError
from xvla_jax.plans import DEFAULT, SamplerPlan
from xvla_jax.untrusted import STRICT, check_bound, parse_json, typed

SCHEMA: Final = 1
SHARE: Final = "share"  # unit of decisions, of which a part differs
SEAL: Final = "seal"
_CONFIG: Final = STRICT | {"extra": "forbid"}
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Share = Annotated[float, Field(ge=0)]


@dataclasses.dataclass(frozen=True)
class Drift:
    """Distance of a quantity from the default plan's, over all rows of all frames.

    The default plan is that of the reference, which is the model itself if none is named.

    Attributes:
        unit: of the numbers, or `SHARE`.
        mean: over rows.
        p99: 99th percentile.
        worst: largest.
        own_error: mean distance of the default plan's actions from the recorded ones.
    """

    __pydantic_config__: ClassVar = _CONFIG

    unit: str
    mean: float
    p99: float
    worst: float
    own_error: float


@dataclasses.dataclass(frozen=True)
class Success:
    """Closed loop on the same initial states.

    Attributes:
        episodes: pairs.
        default: successes with the default plan.
        plan: with this one.
        difference: rate of this plan less that of the default, and its 95 % interval.
        receipt: seal of the receipt with all episodes.
    """

    __pydantic_config__: ClassVar = _CONFIG

    episodes: int
    default: int
    plan: int
    difference: tuple[float, float, float]
    receipt: _Sha256


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits that a certified plan keeps.

    Attributes:
        drift: largest mean drift of a quantity, as a share of the policy's own error.
        flips: largest share of gripper decisions that differ.
    """

    __pydantic_config__: ClassVar = _CONFIG

    drift: _Share
    flips: _Share


@dataclasses.dataclass(frozen=True)
class Entry:
    """Measurements of one plan.

    Attributes:
        plan: its row when it was measured, see `SamplerPlan.to_dict`.
        drift: by domain, then by quantity.
        success: by task; empty where none was given.
        beyond: limits that it breaks, in words.
    """

    __pydantic_config__: ClassVar = _CONFIG

    plan: dict[str, Any]
    drift: dict[str, dict[str, Drift]]
    success: dict[str, Success]
    beyond: tuple[str, ...]

    def checked(self, limits: Limits) -> Entry:
        """Returns the entry with the limits that its measurements break."""
        beyond = [
            line
            for domain, quantities in self.drift.items()
            for name, drift in quantities.items()
            for line in _beyond(f"{name} of domain {domain}", drift, limits)
        ]
        beyond += [
            f"success on {task} is {success.plan} of {success.episodes}, with "
            f"{DEFAULT.name} {success.default}: shown to be lower"
            for task, success in self.success.items()
            if success.difference[2] < 0
        ]
        return dataclasses.replace(self, beyond=tuple(beyond))


@dataclasses.dataclass(frozen=True)
class Certificate:
    """Content of the file, without its seal.

    Attributes:
        schema: of the file.
        model_sha256: of config, preprocessing and parameters as they compute.
        dtype: computing type.
        device: that computed.
        frames: recorded frames by dataset.
        seed: of the noise, the same for all plans.
        limits: see `Limits`.
        plans: entries by name.
        made_by: command and versions.
        reference: hash of another model, whose default plan all entries are compared with; None:
            of this one.
    """

    __pydantic_config__: ClassVar = _CONFIG

    schema: Literal[1]
    model_sha256: _Sha256
    dtype: str
    device: str
    frames: dict[str, int]
    seed: int
    limits: Limits
    plans: dict[str, Entry]
    made_by: dict[str, Any]
    reference: _Sha256 | None = None


_FORM: Final = pydantic.TypeAdapter(Certificate)


def certificate_name(dtype: str) -> str:
    """Returns the name of a checkpoint's certificate in its folder."""
    return f"sampler_certificate.{dtype}.json"


def certificate_path(folder: buckets.Place, dtype: str) -> buckets.Place:
    """Returns the place of a checkpoint's certificate."""
    return folder / certificate_name(dtype)


def sealed(certificate: Certificate) -> dict[str, Any]:
    """Returns the content of the file: plain JSON values and their seal."""
    content = json.loads(json.dumps(dataclasses.asdict(certificate), allow_nan=False))
    if certificate.reference is None:
        del content["reference"]
    return {**content, SEAL: _seal_of(content)}


def stored_certificate(path: buckets.Place) -> bytes | None:
    """Returns the bytes of a certificate on a disk or in a bucket; None where there is none.

    Raises:
        OSError: it cannot be read.
    """
    if buckets.in_bucket(path):
        return buckets.content_of(path)
    return path.read_bytes() if path.is_file() else None


def store_certificate(path: buckets.Place, content: bytes) -> None:
    """Writes the bytes of a certificate to a disk or a bucket.

    Raises:
        OSError: it cannot be written.
    """
    if buckets.in_bucket(path):
        buckets.write(path, content)
    else:
        path.write_bytes(content)


def read_certificate(path: buckets.Place) -> tuple[Certificate, str]:
    """Returns a file's content and its seal.

    Raises:
        CertificateError: it is not there, is no certificate, or was changed after it was written.
        OSError: it cannot be read.
    """
    content = stored_certificate(path)
    if content is None:
        raise CertificateError(f"{path}: there is no such file; {_MEASURE}")
    return _parsed(content, path)


def _parsed(text: bytes, path: buckets.Place) -> tuple[Certificate, str]:
    """Does what `read_certificate` does with the bytes of the file."""
    check_bound("bytes of JSON", len(text), path, error=CertificateError)
    try:
        content = parse_json(text)
    except ValueError as problem:
        raise CertificateError(f"{path}: not JSON ({problem}); {_MEASURE}") from problem
    if not isinstance(content, dict) or not isinstance(content.get(SEAL), str):
        raise CertificateError(f"{path}: no certificate with a seal; {_MEASURE}")
    seal = content.pop(SEAL)
    if seal != _seal_of(content):
        raise CertificateError(
            f"{path}: seal is {seal}; that of the content is {_seal_of(content)}: the file was "
            f"changed after it was written; {_MEASURE}"
        )
    return typed(_FORM, content, path, error=CertificateError), seal


def check_plan(
    plan: SamplerPlan,
    folder: buckets.Place,
    *,
    model_sha256: str,
    dtype: str,
    int8: bool = False,
) -> str | None:
    """Returns the seal of the certificate that allows a plan; None for the default one.

    With ``int8`` weights the default plan needs one too, from another model as reference.

    Raises:
        CertificateError: there is none of this model, or it states that the plan breaks limits.
        OSError: it cannot be read.
    """
    if plan == DEFAULT and not int8:
        return None
    path = certificate_path(folder, dtype)
    content = stored_certificate(path)
    if content is None:
        weights = " with int8 weights" if int8 else ""
        raise CertificateError(f"plan {plan.name}{weights} has no certificate ({path}); {_MEASURE}")
    certificate, seal = _parsed(content, path)
    if certificate.model_sha256 != model_sha256:
        raise CertificateError(
            f"{path} is of model {certificate.model_sha256[:16]}; this one is {model_sha256[:16]} "
            f"(weights, adapter, processor and type decide it); {_MEASURE}"
        )
    entry = certificate.plans.get(plan.name)
    if entry is None or entry.plan != plan.to_dict():
        raise CertificateError(
            f"{path} has no plan {plan.name} as it is now; it has "
            f"{', '.join(certificate.plans) or 'none'}; {_MEASURE}"
        )
    if int8 and certificate.reference is None:
        raise CertificateError(
            f"{path} has no reference, and the weights are int8: it does not say what that changes;"
            f" {_MEASURE}"
        )
    if entry.beyond:
        raise CertificateError(f"{path}: plan {plan.name} breaks limits: {'; '.join(entry.beyond)}")
    return seal


_MEASURE: Final = (
    "--uncertified uses the plan without; python -m scripts.certify_sampler measures one"
)


def _beyond(what: str, drift: Drift, limits: Limits) -> list[str]:
    if drift.unit == SHARE:
        if drift.mean <= limits.flips:
            return []
        return [f"{what} differs in {drift.mean:.2%} of rows; at most {limits.flips:.2%}"]
    if drift.mean <= limits.drift * drift.own_error:
        return []
    return [
        f"{what} drifts by {drift.mean:.3g} {drift.unit}; at most {limits.drift:.0%} of the "
        f"policy's own error, {drift.own_error:.3g}"
    ]


def _seal_of(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
