"""docs/rows.md against the table that it describes."""

from __future__ import annotations

import dataclasses
import re

from data.spec import DatasetSpec
from tests.citations import ROOT


def test_every_field_of_a_row_has_its_line() -> None:
    section = (ROOT / "docs" / "rows.md").read_text().split("## The fields of a row")[1]
    section = section.split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    fields = {field.name for field in dataclasses.fields(DatasetSpec)}
    assert fields - named == set()
    first_cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    listed = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert listed <= fields, "a field that is gone"
