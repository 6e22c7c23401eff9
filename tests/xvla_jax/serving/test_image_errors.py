"""Whatever Pillow raises while it decodes a client's file is that field's 400."""

from __future__ import annotations

import builtins
import io
import struct
import zlib
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin

from xvla_jax.serving.limits import RequestError
from xvla_jax.serving.request import read_image

# MemoryError is the service's 413; the others never come out of a decoder
NO_DECODERS = Warning | UnicodeError | ImportError | ReferenceError | NameError | MemoryError
ABSTRACT = ("Exception", "ExceptionGroup", "StopIteration", "StopAsyncIteration")
MODULES = (PIL, Image, ImageFile, JpegImagePlugin, PngImagePlugin)
NAMED = [
    # without a leading underscore: MuJoCo puts its own errors there, where it is imported
    *(v for name, v in vars(builtins).items() if name not in ABSTRACT and name[0] != "_"),
    *(value for module in MODULES for value in vars(module).values()),
]
RAISED = {
    error
    for error in NAMED
    if isinstance(error, type)
    and issubclass(error, Exception)
    and (not issubclass(error, NO_DECODERS) or error is Image.DecompressionBombWarning)
}
ERRORS = sorted(
    RAISED | {struct.error, zlib.error}, key=lambda error: (error.__module__, error.__qualname__)
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_whatever_pillow_raises_is_a_400(
    monkeypatch: pytest.MonkeyPatch, kind: str, error: type[Exception]
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error("odd")

    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, kind)
    plugin = {
        "PNG": PngImagePlugin.PngImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
    }[kind]
    monkeypatch.setattr(plugin, "load", fail)
    data = np.frombuffer(file.getvalue(), np.uint8)
    with pytest.raises(RequestError) as refusal:
        read_image("image0", data, most_pixels=100)
    assert (refusal.value.status, refusal.value.field) == (400, "image0")
