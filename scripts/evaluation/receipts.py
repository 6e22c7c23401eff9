"""Receipts that a user names: on a disk or in a bucket."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any, Final

from eval.files import FileError
from eval.runs.evaluation import FILMS, TRACES
from eval.runs.receipt import RESULTS, parse_receipt, read_receipt
from scripts.places import files

if TYPE_CHECKING:
    from xvla_jax.buckets import Place

# what an evaluation's folder has below, for `scripts.places.workdir.Workdir`
NEEDED: Final = (f"{FILMS}/*", f"{TRACES}/*")


def file_of(text: str) -> Place:
    """Returns the file of a receipt, which a user names by it or its folder.

    In a bucket, a name that ends in ``.json`` is that of a file.
    """
    place = files.place_of(text)
    if isinstance(place, pathlib.Path):
        return place / RESULTS if place.is_dir() else place
    return place if place.suffix == ".json" else place / RESULTS


def read(text: str) -> dict[str, Any]:
    """Reads a receipt, or the one in a folder.

    Raises:
        FileError: it is not there, is no receipt, or one of another schema.
        OSError: the bucket cannot be read.
    """
    file = file_of(text)
    if isinstance(file, pathlib.Path):
        return read_receipt(file)
    content = files.read(file)
    if content is None:
        raise FileError(f"{file} cannot be read as a receipt: there is no such object")
    return parse_receipt(content, str(file))
