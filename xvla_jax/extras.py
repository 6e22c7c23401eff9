"""Packages of an optional extra: who imports one that is absent is told which extra has it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class MissingExtraError(ModuleNotFoundError):
    """A package that belongs to an extra of setup.py and is not installed."""


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports of packages of an extra.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    try:
        yield
    except MissingExtraError:
        raise
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} is not installed; it is in the extra {extra!r}: pip install -c "
            f"requirements/constraints.txt -e '.[{extra}]' in the checkout",
            name=error.name,
        ) from error
