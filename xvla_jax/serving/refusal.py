"""A request that is refused: one shape of answer for every reason."""

from __future__ import annotations

import math
import reprlib
from typing import Any, Final

from xvla_jax.errors import XVLAError

_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxdict = 4
_MOST_SHOWN: Final = 80  # characters of a value


class RequestError(XVLAError):
    """What the client is told.

    Attributes:
        status: HTTP status.
        error: one sentence.
        field: what of the request is meant; empty if all of it.
        value: what was found.
        allowed: what would have been taken.
        retry_after: seconds, where trying again makes sense.
    """

    def __init__(
        self,
        status: int,
        error: str,
        *,
        field: str = "",
        value: Any = None,
        allowed: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.field = field
        self.value = value
        self.allowed = allowed
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """The JSON answer."""
        plain = self.value is None or (
            isinstance(self.value, int) and abs(self.value) < 2**53
        )  # a float could be no JSON number, a text of any length
        return {
            "error": self.error,
            "detail": {
                "field": self.field,
                "value": self.value if plain else printable(self.value, _MOST_SHOWN),
                "allowed": self.allowed,
            },
        }

    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


def bad_field(field: str, value: Any, allowed: str) -> RequestError:
    """The 400 of one field."""
    return RequestError(400, f"{field} cannot be used", field=field, value=value, allowed=allowed)


def printable(value: Any, most: int) -> str:
    """A value of a client as so many characters of ASCII, a text as itself."""
    if isinstance(value, (str, bytes)):
        value = value[:most]  # first, for the rest of it may be megabytes
    text = value if isinstance(value, str) else _SHORT.repr(value)
    return text[:most].encode("ascii", "backslashreplace").decode()
