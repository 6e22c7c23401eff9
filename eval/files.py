"""Stored files: written so that they appear only when complete, read only where they fit a form.

A form is a JSON Schema of these keywords: type, const, enum, minimum, maximum, pattern, properties,
required, additionalProperties, propertyNames, minProperties, items, prefixItems, minItems,
maxItems, and $ref into $defs. `fields`, `listing` and `mapping` make the common ones. Files may
come from others, so what does not fit is refused in one line: file, field, value, what is allowed.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Form = Mapping[str, Any]

_MAX_LENGTH = 80  # characters of a value in a message
_MOST_JSON = 2**28  # bytes; a receipt of 100,000 episodes has about 2**26
_MOST_ARRAYS = 2**30  # bytes after decompression
_LARGEST = 1e300  # of a number: differences of two stay finite
_LARGEST_INTEGER = 2**63 - 1
_SURROGATES = re.compile("[\ud800-\udfff]")  # JSON can name them alone; no file can hold them


class FileError(ValueError):
    """A stored file that does not fit its form; names file, field, value and what is allowed."""


TEXT: Form = {"type": "string"}
OBJECT: Form = {"type": "object"}


def integer(minimum: int, maximum: int) -> Form:
    """Returns the form of an integer, both bounds included."""
    return {"type": "integer", "minimum": minimum, "maximum": maximum}


def fields(**forms: Form) -> Form:
    """Returns the form of an object that has these fields, and maybe others."""
    return {"type": "object", "properties": forms, "required": list(forms)}


def listing(item: Form, length: int | None = None) -> Form:
    """Returns the form of a list of items, of any length or of exactly this one."""
    exact = {} if length is None else {"minItems": length, "maxItems": length}
    return {"type": "array", "items": item, **exact}


def mapping(value: Form, keys: str = "") -> Form:
    """Returns the form of an object whose values have one form and whose keys match a pattern."""
    return {"type": "object", "additionalProperties": value, "propertyNames": {"pattern": keys}}


def read_bytes(path: Path) -> bytes:
    """Reads a file of a size that JSON may have.

    Raises:
        FileError: the file is too large.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size > _MOST_JSON:
        raise FileError(f"{path} has {size} bytes; allowed are at most {_MOST_JSON}")
    return path.read_bytes()


def read_json(path: Path, form: Form) -> Any:
    """Reads a JSON file that has the form.

    Raises:
        FileError: the file is too large, no JSON, or does not fit.
        OSError: it cannot be read.
    """
    return parse_json(read_bytes(path), form, str(path))


def parse_json(text: bytes, form: Form, where: str) -> Any:
    """Parses JSON text that has the form; `where` names it in messages.

    Raises:
        FileError: it is no JSON, or does not fit.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise FileError(f"{where}: no JSON (nested too deeply)") from None
    except ValueError as error:
        raise FileError(f"{where}: no JSON ({error})") from None
    check(value, form, where)
    return value


def check(value: Any, form: Form, where: str) -> None:
    """Refuses plain values that do not fit a form; `where` names their file in the message.

    Raises:
        FileError: names the first field that does not fit.
    """
    _check(value, form, form, where, ())


def read_arrays(path: Path, forms: Mapping[str, tuple[str, int]]) -> dict[str, NDArray[Any]]:
    """Reads arrays of finite numbers from an .npz file.

    Args:
        path: the file.
        forms: name -> (kinds of its dtype as numpy's letters, number of axes).

    Raises:
        FileError: the file is no .npz, unpacks to too much, or an array does not fit.
        OSError: it cannot be read.
    """
    try:
        # Sizes come from the directory of the archive: nothing is unpacked before they are known.
        with zipfile.ZipFile(str(path)) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _MOST_ARRAYS:
            raise FileError(f"{path} unpacks to {size} bytes; allowed are at most {_MOST_ARRAYS}")
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in forms}
    except KeyError as error:
        raise FileError(f"{path}: {error.args[0]}; needed are {', '.join(forms)}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, MemoryError, RuntimeError) as error:
        raise FileError(f"{path} cannot be read as .npz: {error}") from None
    except FileError:
        raise
    except ValueError as error:
        raise FileError(f"{path}: {error}") from None
    for name, (kinds, axes) in forms.items():
        array = arrays[name]
        fits = array.dtype.kind in kinds and array.ndim == axes
        if not fits or not np.isfinite(array).all():
            raise FileError(
                f"{path}: {name} is {array.dtype}{list(array.shape)}; allowed are finite numbers "
                f"of kind {' or '.join(kinds)} with {axes} axes"
            )
    return arrays


_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}


def _is(value: Any, kind: str) -> bool:
    """Returns True for a value of a JSON type; true and false are no numbers."""
    return isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _check(value: Any, form: Form, root: Form, where: str, path: Sequence[object]) -> None:
    """Raises FileError at the first part of `value` that does not fit `form`.

    Args:
        value: what the file has at `path`.
        form: for it.
        root: form of the entire file, which has the $defs.
        where: the file, for messages.
        path: keys and indices from the top of the file to `value`.
    """
    if "$ref" in form:
        form = root["$defs"][form["$ref"].rpartition("/")[2]]
    allowed = _allowed(value, form)
    if allowed:
        place = ".".join(map(str, path)) or "the content"
        raise FileError(f"{where}: {place} is {_short(value)}; allowed is {allowed}")
    if isinstance(value, dict):
        properties, others = form.get("properties", {}), form.get("additionalProperties", {})
        for key in form.get("required", ()):
            if key not in value:
                raise FileError(f"{where}: {'.'.join(map(str, (*path, key)))} is missing")
        for key, part in value.items():
            if key not in properties:
                _check(key, form.get("propertyNames", {}), root, where, (*path, "(key)"))
            if key not in properties and others is False:
                known = ", ".join(properties)
                raise FileError(
                    f"{where}: {_short('.'.join(map(str, (*path, key))))} is no field; allowed are "
                    f"{known}"
                )
            _check(part, properties.get(key, others), root, where, (*path, key))
    elif isinstance(value, list):
        first = form.get("prefixItems", ())
        for index, part in enumerate(value):
            inner = first[index] if index < len(first) else form.get("items", {})
            _check(part, inner, root, where, (*path, index))


def _allowed(value: Any, form: Form) -> str:
    """Returns "" for a value that fits, apart from its parts, and else what is allowed."""
    kinds = form.get("type", list(_TYPES))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not any(_is(value, kind) for kind in kinds):
        return " or ".join(kinds)
    choices = [form["const"]] if "const" in form else form.get("enum")
    if choices is not None and value not in choices:
        return " or ".join(map(repr, choices))
    if isinstance(value, str) and not re.search(form.get("pattern", ""), value):
        return f"text that matches {form['pattern']}"
    if isinstance(value, str) and _SURROGATES.search(value):
        return "text that UTF-8 can hold"
    if isinstance(value, (list, dict)):
        least = form.get("minItems", form.get("minProperties", 0))
        most = form.get("maxItems", max(len(value), least))
        return "" if least <= len(value) <= most else f"{least} to {most} entries"
    if _is(value, "number"):
        bound = _LARGEST_INTEGER if isinstance(value, int) else _LARGEST
        least, most = form.get("minimum", -bound), form.get("maximum", bound)
        # `not` before the comparison, so that NaN does not fit either
        return "" if least <= value <= most else f"a number from {least} to {most}"
    return ""


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Returns the paths at which two plain values differ: "versions.mujoco: 3.1 against 3.2"."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in dict.fromkeys([*old, *new]):
            inner = f"{where}.{key}" if where else str(key)
            lines += differences(old.get(key, "nothing"), new.get(key, "nothing"), inner)
        return lines
    return [] if old == new else [f"{where}: {_short(old)} against {_short(new)}"]


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}..."


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` beside `path` and renames it; an older file stays until then."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(str(partial), str(path))
    finally:
        if partial.exists():
            partial.unlink()


def write_json(path: Path, value: Any) -> None:
    """Writes plain values as JSON.

    Raises:
        ValueError: a number that is not finite, which JSON does not have.
    """
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8"))
