"""Imports packages of optional extras, and names the extra where one is not installed."""

from __future__ import annotations

import importlib
from typing import Any


class MissingExtraError(ModuleNotFoundError, RuntimeError):
    """A package that belongs to an extra of setup.py and is not installed."""


def needed(package: str, extra: str = "client") -> Any:
    """Imports a package of an optional extra.

    Raises:
        MissingExtraError: it is not installed; the message has the command to install it.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} is not installed; it is in the extra {extra!r}: pip install "
            f"'.[{extra}]' in the checkout",
            name=error.name,
        ) from error
