"""Full, read-only and failing disks as the OSError that they are, whatever library met them."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Final

_CODE: Final = re.compile(r"os_error_code='(\d+)'")
_BY_TEXT: Final = {
    os.strerror(code): code
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES)
}


@contextlib.contextmanager
def disk_errors(folder: pathlib.Path) -> Iterator[None]:
    """Turns what TensorStore and Orbax raise about the disk of ``folder`` into an OSError."""
    try:
        yield
    except OSError:
        raise
    except (ValueError, RuntimeError) as error:
        code = os_error_code(error)
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(folder)) from None


def os_error_code(error: BaseException) -> int | None:
    """Number of the system's error that an exception tells of; None where it tells of none."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno is not None:
            return seen.errno
        found = _CODE.search(str(seen))
        if found:
            return int(found[1])
        for text, code in _BY_TEXT.items():
            if text in str(seen):
                return code
        seen = seen.__cause__ or seen.__context__
    return None


def check_free(folder: pathlib.Path, nbytes: int) -> None:
    """Raises the OSError of a full disk when ``folder`` has no room for so many bytes."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < nbytes:
        raise OSError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)}: {nbytes / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB "
            "are free",
            str(folder),
        )
