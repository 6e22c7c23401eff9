"""No text and no name of the tree uses a word that the house does not use."""

import pytest

from tests.house_english import EVERYWHERE, name_problems, problems_below, text_problems


def test_no_word_or_name_of_the_house_list_is_left() -> None:
    assert problems_below(EVERYWHERE) == []


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ('"""Wha' + 't a step does."""', "starts with"),
        ('def f():\n    """Returns the pictu' + 're of a view."""', "write image"),
        ("x = 1  # the run go" + "es on from here", "resume"),
        ('raise ValueError(f"{x} is an err' + 'or here")', "fails"),
        ('flag("name", "Of the who' + 'le batch.")', "complete"),
    ],
)
def test_a_word_is_listed_with_what_to_write(source: str, problem: str) -> None:
    (line,) = text_problems("data/a.py", source)
    assert line.startswith("data/a.py:")
    assert problem in line
    assert text_problems("data/a.py", "x = 1  # it goes on the wire, `told` is a field") == []


def test_a_page_is_read_without_its_code() -> None:
    page = "Write `tell` here.\n```\ntell me\n```\nThis te" + "lls more.\n"
    (line,) = text_problems("docs/a.md", page)
    assert line.startswith("docs/a.md:5")


def test_a_name_that_says_how_and_not_what_is_listed() -> None:
    bad = "def f(wan" + "ted):\n    fou" + "nd, rows = 1, 2\n    x.to" + "ld = 3\n"
    assert len(name_problems("data/a.py", bad)) == 3
    assert name_problems("data/a.py", "def f(rows):\n    images = rows\n") == []
