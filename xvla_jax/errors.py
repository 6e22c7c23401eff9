"""Named errors. Each message states the value, the allowed values, and where to change it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class MissingExtraError(ModuleNotFoundError):
    """A package that belongs to an extra of setup.py and is not installed."""


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Wraps imports of packages of an extra.

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


class XVLAError(Exception):
    """Base of the errors that this library raises on purpose."""


class ConfigError(XVLAError, ValueError):
    """A configuration that describes no model, or not the one at hand."""


class CheckpointError(XVLAError, ValueError):
    """A checkpoint that is missing, incomplete, or of another shape."""


class InputError(XVLAError, ValueError):
    """An observation or batch that does not fit the model; `field` names the part, where known."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class ContractError(XVLAError, ValueError):
    """A policy, dataset or task whose action conventions differ."""


class CertificateError(XVLAError, ValueError):
    """A sampler plan without a certificate of this model that allows it."""


class TrainingError(XVLAError, RuntimeError):
    """A run that cannot continue."""


class ProgramError(XVLAError, ValueError):
    """A compiled program that breaks an expectation of the planner."""


class DistributedError(XVLAError, RuntimeError):
    """Processes of a run that disagree, do not connect, or have ended."""
