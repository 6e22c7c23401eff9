"""The tokenizer's files in a checkpoint folder: X-VLA's own, which is bundled, or another."""

from __future__ import annotations

import pathlib
from typing import Final

import pydantic
from typing_extensions import TypedDict

from xvla_jax.errors import CheckpointError
from xvla_jax.formats.file_names import plain_name
from xvla_jax.untrusted import STRICT, check_object, read_json, typed

TOKENIZER_FILES: Final = ("vocab.json", "merges.txt")
BUNDLED_TOKENIZER: Final = pathlib.Path(__file__).parents[1] / "assets" / "bart_tokenizer"

_VOCABULARY: Final = pydantic.TypeAdapter(dict[str, int], config=STRICT)


@pydantic.with_config(STRICT)
class _TokenizerModel(TypedDict):
    vocab: dict[str, int]


@pydantic.with_config(STRICT)
class _TokenizerFile(TypedDict):
    model: _TokenizerModel


_TOKENIZER_FILE: Final = pydantic.TypeAdapter(_TokenizerFile)


def other_tokenizer(folder: pathlib.Path) -> str | None:
    """The folder if it holds another tokenizer than the bundled one.

    More entries make no other: those from 50,265 on are names of places in Florence-2, which no
    instruction contains.
    """
    path, whole = folder / "vocab.json", folder / "tokenizer.json"
    if path.is_file():
        vocabulary = typed(_VOCABULARY, read_json(path), path)
    elif whole.is_file():
        vocabulary = typed(_TOKENIZER_FILE, read_json(whole), whole)["model"]["vocab"]
    else:
        return None
    bundled = read_json(BUNDLED_TOKENIZER / "vocab.json")
    merges = folder / "merges.txt"
    same_merges = not merges.is_file() or _merges(folder) == _merges(BUNDLED_TOKENIZER)
    if same_merges and vocabulary.items() >= bundled.items():
        return None
    if not all((folder / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(
            f"{folder}: its vocabulary is another than X-VLA's (BART's), and there are not both of "
            f"{', '.join(TOKENIZER_FILES)} to read it with"
        )
    _check_tokenizer_config(folder / "tokenizer_config.json")
    return str(folder)


def _check_tokenizer_config(path: pathlib.Path) -> None:
    """Refuses a tokenizer's config that leads to files outside its folder."""
    if path.is_file():
        raw = check_object(read_json(path), path, error=CheckpointError)
        for key, value in raw.items():
            if key.endswith("_file") and value is not None:
                plain_name(value, f"{path}: {key}")


def _merges(folder: pathlib.Path) -> list[str]:
    lines = (folder / "merges.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#version")]
