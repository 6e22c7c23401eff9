"""docs/data.md against the code that it describes."""

import dataclasses
import re
from pathlib import Path

from data.spec import DatasetSpec

ROOT = Path(__file__).parents[2]


def test_every_field_of_a_row_has_its_line():
    section = (ROOT / "docs" / "data.md").read_text().split("## The fields of a row")[1]
    section = section.split("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", section))
    fields = {field.name for field in dataclasses.fields(DatasetSpec)}
    assert fields - named == set()
    first_cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    listed = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert listed <= fields, "a field that is gone"
