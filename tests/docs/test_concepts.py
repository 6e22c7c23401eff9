"""The tables of the doors on the page of concepts are those of the code."""

from __future__ import annotations

from tests.citations import ROOT
from xvla_jax.batch import Batch, Observation, door_table


def test_the_doors_on_the_page_are_those_of_the_code() -> None:
    page = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    assert door_table(Batch).strip() in page
    assert door_table(Observation).strip() in page
