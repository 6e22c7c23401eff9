"""Files that are complete or absent, and forms that name what does not fit."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.files import (
    TEXT,
    FileError,
    check,
    differences,
    fields,
    integer,
    listing,
    mapping,
    parse_json,
    read_arrays,
    read_json,
)

FORM = fields(
    name=TEXT,
    size=listing(integer(1, 9), length=2),
    notes=mapping(TEXT, keys="^[0-9]+$"),
    rate={"type": ["number", "null"], "minimum": 0},
    done={"type": "boolean"},
    kind={"enum": ["a", "b"]},
)
FITS = {"name": "x", "size": [1, 9], "notes": {"3": "y"}, "rate": 0.5, "done": True, "kind": "a"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": 7}, "name is 7; allowed is string"),
        ({"name": "\ud800"}, "name is .*; allowed is text that UTF-8 can hold"),
        ({"size": [1]}, r"size is \[1\]; allowed is 2 to 2 entries"),
        ({"size": [1, 10]}, r"size\.1 is 10; allowed is a number from 1 to 9"),
        ({"size": [1, True]}, r"size\.1 is True; allowed is integer"),
        ({"size": [1, 2.0]}, r"size\.1 is 2\.0; allowed is integer"),
        ({"size": None}, "size is None; allowed is array"),
        ({"notes": {"a": "y"}}, r"notes\.\(key\) is a; allowed is text that matches \^"),
        ({"notes": {"3": 4}}, r"notes\.3 is 4; allowed is string"),
        ({"rate": -1}, "rate is -1; allowed is a number from 0 to"),
        ({"rate": float("inf")}, "rate is inf; allowed is a number"),
        ({"rate": float("nan")}, "rate is nan; allowed is a number"),
        ({"rate": 10**400}, "rate is 1000.*; allowed is a number"),
        ({"rate": "x" * 999}, r"rate is x{80}\.\.\.; allowed is number or null"),
        ({"done": 1}, "done is 1; allowed is boolean"),
        ({"kind": "c"}, "kind is c; allowed is 'a' or 'b'"),
    ],
)
def test_the_first_field_that_does_not_fit_is_named(change: dict[str, Any], words: str) -> None:
    check(FITS, FORM, "f.json")
    with pytest.raises(FileError, match=rf"^f\.json: {words}"):
        check({**FITS, **change}, FORM, "f.json")


def test_a_field_may_be_missing_or_unknown() -> None:
    check({**FITS, "more": 1}, FORM, "f.json")
    with pytest.raises(FileError, match=r"f\.json: name is missing"):
        check({k: v for k, v in FITS.items() if k != "name"}, FORM, "f.json")
    closed = {**FORM, "additionalProperties": False}
    with pytest.raises(FileError, match=r"f\.json: more is no field; allowed are name, size"):
        check({**FITS, "more": 1}, closed, "f.json")


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[" * 100_000, b"1" * 5000, b""])
def test_text_that_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(FileError, match=r"f\.json: no JSON \("):
        parse_json(text, FORM, "f.json")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    with path.open("wb") as file:
        file.truncate(2**28 + 1)  # sparse
    with pytest.raises(FileError, match=r"large\.json has 268435457 bytes; allowed are at most"):
        read_json(path, FORM)
    path.write_text(json.dumps(FITS))
    assert read_json(path, FORM) == FITS


def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(2):
            with archive.open(f"{number}.npy", "w", force_zip64=True) as member:
                for _ in range(33):
                    member.write(bytes(2**24))
    with pytest.raises(FileError, match=r"bomb\.npz unpacks to 1107296256 bytes"):
        read_arrays(path, {"0": ("f", 1)})


def test_arrays_are_read_by_kind_and_axes(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, rows=np.ones((2, 3), np.float32))
    assert read_arrays(path, {"rows": ("f", 2)})["rows"].shape == (2, 3)
    with pytest.raises(FileError, match=r"rows is float32\[2, 3\]; allowed are finite numbers"):
        read_arrays(path, {"rows": ("f", 1)})


def test_differences_are_named_by_their_path() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3, "d": 4}}) == [
        "a.c: 2 against 3",
        "a.d: nothing against 4",
    ]
