"""Things outside this repository, named on the command line as module:NAME."""

from __future__ import annotations

import importlib

SEPARATOR = ":"


def is_named(text: str) -> bool:
    """Whether `text` has the form module:NAME."""
    module, separator, name = text.partition(SEPARATOR)
    return bool(separator) and name.isidentifier() and all(map(str.isidentifier, module.split(".")))


def load_named(text: str) -> object:
    """What `module:NAME` names; the module is imported.

    Raises:
        ValueError: no such module, or no such name in it.
    """
    module_name, _, name = text.partition(SEPARATOR)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{text}: {error}; the folder of your module must be on PYTHONPATH"
        ) from error
    if not hasattr(module, name):
        names = ", ".join(found for found in vars(module) if not found.startswith("_"))
        raise ValueError(f"{text}: {module_name} has no {name}; it has {names}")
    return getattr(module, name)
