"""Sampler plans of a request: what the operator allows, the best that has time, and stated."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import pytest

from tests.xvla_jax.serving.fakes import LIMITS, FakeEngine, request
from xvla_jax.plans import DEFAULT, PLANS, SamplerPlan
from xvla_jax.serving.codecs import decode_array
from xvla_jax.serving.limits import Client, RequestError
from xvla_jax.serving.request import parse_request
from xvla_jax.serving.service import Sent, Service

_OFFERED = DEFAULT, PLANS["frozen3"]


def _plans(**changes: Any) -> list[str]:
    rules = FakeEngine(plans=_OFFERED).rules
    return [p.name for p in parse_request(request(**changes), rules, decode_array).plans]


def test_a_request_has_the_plans_that_it_may_get() -> None:
    assert _plans(steps=None) == ["exact10", "frozen3"]
    assert _plans(steps=None, plan="frozen3") == ["frozen3"]
    assert _plans(steps=4) == ["exact4"]


@pytest.mark.parametrize(
    ("changes", "field", "allowed"),
    [
        ({"plan": "frozen10", "steps": None}, "plan", "plans of this server: exact10, frozen3"),
        ({"plan": 3, "steps": None}, "plan", "plans of this server"),
        ({"plan": "frozen3", "steps": 3}, "steps", "not both"),
    ],
)
def test_other_plans_are_refused(changes: dict[str, Any], field: str, allowed: str) -> None:
    with pytest.raises(RequestError) as refusal:
        _plans(**changes)
    assert (refusal.value.status, refusal.value.field) == (400, field)
    assert allowed in refusal.value.allowed


@pytest.mark.parametrize(
    ("changes", "plan", "steps"),
    [
        ({"steps": None}, "exact10", 10),
        ({"steps": None, "deadline_ms": 400}, "frozen3", 3),
        ({"steps": None, "plan": "frozen3"}, "frozen3", 3),
        ({"steps": 7}, "exact7", 7),
    ],
)
def test_the_reply_states_the_plan(changes: dict[str, Any], plan: str, steps: int) -> None:
    class Slow(FakeEngine):
        def warm(self, plan: SamplerPlan, views: int, batch: int) -> float:
            del views, batch
            return {"exact10": 0.6, "frozen3": 0.01}[plan.name]

    async def main() -> None:
        service = Service(lambda: Slow(plans=_OFFERED), dataclasses.replace(LIMITS, wait_ms=1))
        async with service.running():
            sent = Sent(lambda _: request(**changes), decode_array)
            answer = await service.act(sent, client=Client("a"), began=time.monotonic())
        assert (answer.extras["plan"], answer.actions[0, 0]) == (plan, steps)

    asyncio.run(main())
