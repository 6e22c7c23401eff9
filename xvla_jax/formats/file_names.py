"""Names of files that a file states."""

from __future__ import annotations

import pathlib
from typing import Any, Final

from xvla_jax.errors import CheckpointError
from xvla_jax.untrusted import shown

_LONGEST: Final = 255  # bytes of a name on the usual file systems


def plain_name(name: Any, where: object) -> str:
    """Returns a stored name that is a single component of a path, and refuses any other.

    Whatever becomes a path below a folder passes through here, so that no file can lead out of it.

    Args:
        name: as the file has it.
        where: file and field, for the message.

    Raises:
        CheckpointError: the name is no text, empty, ``.`` or ``..``, too long, or has a separator
            or a control character.
    """
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or any(letter in "/\\" or not letter.isprintable() for letter in name)
        or len(name.encode()) > _LONGEST
    ):
        raise CheckpointError(
            f"{where} names a file {shown(name)}; a plain name without separators is allowed"
        )
    return name


def check_link(path: pathlib.Path) -> bool:
    """Returns True, and refuses a symbolic link that leads out of its folder.

    A file that is carried along ends up in what somebody publishes. Links of a Hugging Face cache
    lead to its own ``blobs``.

    Raises:
        CheckpointError: the link leads elsewhere.
    """
    if path.is_symlink():
        folder, target = path.parent.resolve(), path.resolve()
        if not target.is_relative_to(folder) and target.parent != folder.parent.parent / "blobs":
            raise CheckpointError(
                f"{path} is a link to {target}, outside its folder; put a copy in its place, or "
                "remove it"
            )
    return True
