"""Refusals fit their OpenAPI description."""

from __future__ import annotations

import math
from typing import Any

import pytest

from xvla_jax.serving.limits import bad_field
from xvla_jax.serving.schema import ErrorReply


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (7, 7),
        (False, False),
        (2**60, str(2**60)),
        (math.nan, "nan"),
        ("a" * 200, "a" * 80),
        ({"a": 1}, "{'a': 1}"),
    ],
)
def test_any_value_is_shown_in_the_described_form(value: Any, shown: Any) -> None:
    body = bad_field("steps", value, "1 to 50").body()
    assert body["detail"]["value"] == shown
    assert ErrorReply.model_validate(body, strict=True).detail.value == shown
