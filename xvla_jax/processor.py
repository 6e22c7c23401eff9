"""Turns an instruction and camera images into ids ``[L]`` and images ``[V, S, S, 3]``.

Image side, resizing, number of views, text length and units are part of a checkpoint's contract:
another value gives other actions. They are read from the checkpoint's files; code that lies beside
them is never run.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, ClassVar, Final

import numpy as np
import pydantic
from pydantic import Field
from typing_extensions import TypedDict

from xvla_jax.batch import IMAGE_MEAN, IMAGE_STD
from xvla_jax.errors import CheckpointError, InputError
from xvla_jax.preprocessing import resizing
from xvla_jax.preprocessing.scaling import Scaling
from xvla_jax.untrusted import (
    STRICT,
    Side,
    check_object,
    parse_json,
    plain_name,
    read_json,
    shown,
    typed,
)

PREPROCESSOR_NAME: Final = "preprocessor_config.json"
TOKENIZER_FILES: Final = ("vocab.json", "merges.txt")
BUNDLED_TOKENIZER: Final = pathlib.Path(__file__).parent / "assets" / "bart_tokenizer"

_TOKENIZING: Final = threading.Lock()

# Fields of the released file of which no other value is supported.
_FIXED: Final[Mapping[str, Any]] = {
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": None,
    "rescale_factor": 1 / 255,
}
_OURS: Final = "xvla_jax"  # section of the released file: what that file cannot say
_MADE: Final = {"image_processor_type": "CLIPImageProcessor"}
_READ: Final = ("size", "resample", "image_mean", "image_std")
_RGB: Final = Field(min_length=3, max_length=3)
_Views = Annotated[int, Field(ge=1, le=64)]
_TextLength = Annotated[int, Field(ge=2, le=16_384)]  # <s> and </s> at least
_Resample = Annotated[int, Field(ge=0, le=5)]  # PIL's filters
_Mean = Annotated[tuple[Annotated[float, Field(ge=-1e3, le=1e3)], ...], _RGB]
_Std = Annotated[tuple[Annotated[float, Field(ge=1e-3, le=1e3)], ...], _RGB]
_UNUSED: Final = (
    "crop_size",
    "image_processor_type",
    "processor_class",
    "auto_map",
    "feature_extractor_type",
)


@dataclasses.dataclass(frozen=True)
class Processor:
    """Text and image preprocessing of a checkpoint.

    Attributes:
        image_size: side S in pixels of the images that the network sees.
        num_views: view slots V; missing views are zero images with mask False.
        text_length: L; ids are padded with 1 and cut to it. Padding is attended, so L matters.
        resize: way from other sizes to S x S; a row of ``resizing.RESIZING``.
        resample: PIL filter number where they are stretched; 3 = bicubic.
        mean: of the normalisation, RGB.
        std: of the normalisation, RGB.
        tokenizer_dir: folder with ``vocab.json`` and ``merges.txt``; the bundled BART tokenizer if
            None.
        state: normalisation of proprio; None: the network takes the robot's units.
        action: normalisation of actions.
        extra: JSON text of fields that are not used here; they are written back.
    """

    __pydantic_config__: ClassVar = STRICT | {"extra": "forbid"}

    image_size: Side = 224
    num_views: _Views = 3
    text_length: _TextLength = 50
    resize: str = "stretch"
    resample: _Resample = 3
    mean: _Mean = IMAGE_MEAN
    std: _Std = IMAGE_STD
    tokenizer_dir: str | None = None
    state: Scaling | None = None
    action: Scaling | None = None
    extra: str = dataclasses.field(default="{}", repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuses a ``resize`` that is not a row of ``RESIZING``."""
        if self.resize not in resizing.RESIZING:
            raise CheckpointError(
                f"resize is {self.resize!r}; known are {', '.join(resizing.RESIZING)}"
            )

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Processor:
        """Reads ``preprocessor_config.json``, and the tokenizer's files where the folder has them.

        Raises:
            CheckpointError: the file is missing, or asks for a step that is not supported.
        """
        path = pathlib.Path(folder) / PREPROCESSOR_NAME
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file; image size and resampling are part of a checkpoint"
            )
        raw = check_object(read_json(path), path, error=CheckpointError)
        section = typed(_SECTION, raw.pop(_OURS, {}), path, field=_OURS)
        ours: dict[str, Any] = {k: v for k, v in section.items() if v is not None}
        typed(_RELEASED, {k: raw[k] for k in _READ if k in raw}, path)
        # A field that is null asks for nothing, known or not.
        other = {k: v for k, v in raw.items() if k not in (*_FIXED, *_READ)}
        extra = {k: v for k, v in other.items() if k in _UNUSED or v is None}
        unknown = set(other) - set(extra)
        extra = {k: v for k, v in extra.items() if k not in _MADE or _MADE[k] != v}
        wrong = {k: raw[k] for k, v in _FIXED.items() if k in raw and not _same(raw[k], v)}
        if unknown or wrong:
            raise CheckpointError(
                f"{path}: unknown fields {sorted(unknown)}, unsupported values {wrong}"
            )
        size = raw.get("size", {})
        if set(size) != {"height", "width"} or size["height"] != size["width"]:
            raise CheckpointError(
                f"{path}: size is {size}; {{'height': S, 'width': S}} is expected"
            )
        return cls(
            image_size=size["height"],
            resample=raw.get("resample", 3),
            mean=tuple(raw.get("image_mean", IMAGE_MEAN)),
            std=tuple(raw.get("image_std", IMAGE_STD)),
            tokenizer_dir=other_tokenizer(path.parent),
            extra=json.dumps(extra),
            **ours,
        )

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes the released files: ``preprocessor_config.json`` and the tokenizer's."""
        folder = pathlib.Path(folder)
        raw = (
            dict(_FIXED)
            | {
                "image_processor_type": "CLIPImageProcessor",
                "size": {"height": self.image_size, "width": self.image_size},
                "resample": self.resample,
                "image_mean": list(self.mean),
                "image_std": list(self.std),
            }
            | json.loads(self.extra)
        )
        ours = self._ours()
        if ours != Processor()._ours():  # X-VLA's own values are not in its files
            raw[_OURS] = ours
        (folder / PREPROCESSOR_NAME).write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")
        for name in TOKENIZER_FILES:
            shutil.copyfile(self._tokenizer_path / name, folder / name)
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"model_max_length": 1024, "tokenizer_class": "BartTokenizer"}) + "\n"
        )

    def _ours(self) -> dict[str, Any]:
        """Returns the fields that the released file has no place for, without empty ones."""
        ours: dict[str, Any] = {"num_views": self.num_views, "text_length": self.text_length}
        if self.resize != "stretch":
            ours["resize"] = self.resize
        for name in _SCALINGS:
            if getattr(self, name):
                ours[name] = dataclasses.asdict(getattr(self, name))
        return ours

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for a checkpoint item.

        Raises:
            CheckpointError: the tokenizer is not the bundled one; an item has no place for it.
        """
        if self.tokenizer_dir:
            raise CheckpointError(
                f"the tokenizer in {self.tokenizer_dir} is not X-VLA's (BART's); only folders of "
                "the PyTorch layouts can carry another"
            )
        values = dataclasses.asdict(self)
        del values["tokenizer_dir"]
        return values

    @classmethod
    def from_dict(cls, values: Any, where: object = "a processor") -> Processor:
        """Inverse of `to_dict`, with the bundled tokenizer; ``where`` is the file for messages.

        Raises:
            CheckpointError: a value has a wrong type or range, or names a tokenizer's folder.
        """
        processor = typed(_PROCESSOR, values, where, field="processor")
        if processor.tokenizer_dir is not None:
            raise CheckpointError(
                f"{where}: processor.tokenizer_dir is {shown(processor.tokenizer_dir)}; an item of "
                "a checkpoint names no folder"
            )
        try:
            extra = parse_json(processor.extra)
        except ValueError as error:
            raise CheckpointError(f"{where}: processor.extra is not JSON ({error})") from error
        check_object(extra, where, error=CheckpointError)
        return processor

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Tokenizes instructions as ``int32[n, L]``.

        A row is ``<s> text </s>``, padded with 1, cut to L with ``</s>`` kept.
        """
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise InputError(
                    f"an instruction is {text!r}; a text that is not empty is expected"
                )
        encoded = _tokenizer(str(self._tokenizer_path))(
            list(texts), padding="max_length", truncation=True, max_length=self.text_length
        )
        return np.asarray(encoded["input_ids"], dtype=np.int32)

    def prepare_images(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Turns the present views of a sample into `pixel_dtype` ``[V, S, S, 3]`` and ``bool[V]``.

        Raises:
            InputError: there are too many or none, or one is not uint8 RGB or has a size that the
                checkpoint refuses.
        """
        if not 1 <= len(images) <= self.num_views:
            raise InputError(
                f"an observation has {len(images)} images; 1 .. {self.num_views} are allowed"
            )
        side = self.image_size
        out = np.zeros((self.num_views, side, side, 3), self.pixel_dtype)
        for slot, image in enumerate(images):
            out[slot] = self.fit(np.asarray(image), who=f"image {slot}")
        return out, np.arange(self.num_views) < len(images)

    def fit(self, image: np.ndarray, *, who: str = "an image") -> np.ndarray:
        """Resizes one image ``uint8[H, W, 3]`` RGB to `pixel_dtype` ``[S, S, 3]``."""
        side, mode = self.image_size, self.resize
        return resizing.resize(image, side, mode, resample=self.resample, mean=self.mean, who=who)

    def fit_levels(self, image: np.ndarray) -> np.ndarray:
        """Resizes like `fit`, rounded to the uint8 of a training `Batch`."""
        return np.rint(self.fit(image)).astype(np.uint8)

    @property
    def training_fit(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """Returns `fit_levels`, or None if it equals the default of ``data/``: stretch, bicubic."""
        usual = (self.resize, self.resample) == (Processor.resize, Processor.resample)
        return None if usual else self.fit_levels

    @property
    def pixel_dtype(self) -> type[np.generic]:
        """Type of prepared images: uint8, or float32 of 0 .. 255."""
        return resizing.pixel_dtype(self.resize)

    @property
    def _tokenizer_path(self) -> pathlib.Path:
        return pathlib.Path(self.tokenizer_dir) if self.tokenizer_dir else BUNDLED_TOKENIZER


_SCALINGS: Final = ("state", "action")


@pydantic.with_config(STRICT | {"extra": "forbid"})
class _Section(TypedDict, total=False):
    num_views: _Views
    text_length: _TextLength
    resize: str
    state: Scaling | None
    action: Scaling | None


@pydantic.with_config(STRICT | {"extra": "forbid"})
class _Size(TypedDict):
    height: Side
    width: Side


@pydantic.with_config(STRICT)
class _Released(TypedDict, total=False):
    """The fields ``_READ``."""

    size: _Size
    resample: _Resample
    image_mean: _Mean
    image_std: _Std


_SECTION: Final = pydantic.TypeAdapter(_Section)
_RELEASED: Final = pydantic.TypeAdapter(_Released)
_PROCESSOR: Final = pydantic.TypeAdapter(Processor)


def _same(value: Any, fixed: Any) -> bool:
    if isinstance(fixed, float):
        return isinstance(value, float) and abs(value - fixed) < 1e-9
    return value is fixed


_VOCABULARY: Final = pydantic.TypeAdapter(dict[str, int], config=STRICT)


@pydantic.with_config(STRICT)
class _TokenizerModel(TypedDict):
    vocab: dict[str, int]


@pydantic.with_config(STRICT)
class _TokenizerFile(TypedDict):
    model: _TokenizerModel


_TOKENIZER_FILE: Final = pydantic.TypeAdapter(_TokenizerFile)


def other_tokenizer(folder: pathlib.Path) -> str | None:
    """Returns the folder if its tokenizer differs from the bundled one, else None.

    Further entries make no difference: those from 50,265 on are Florence-2's location tokens, which
    no instruction contains.
    """
    path, combined = folder / "vocab.json", folder / "tokenizer.json"
    if all(_same_bytes(folder / name, BUNDLED_TOKENIZER / name) for name in TOKENIZER_FILES):
        return None  # as an export has them: nothing to parse
    if path.is_file():
        vocabulary = typed(_VOCABULARY, read_json(path), path)
    elif combined.is_file():
        vocabulary = typed(_TOKENIZER_FILE, read_json(combined), combined)["model"]["vocab"]
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


def _same_bytes(path: pathlib.Path, other: pathlib.Path) -> bool:
    if not path.is_file() or path.stat().st_size != other.stat().st_size:
        return False
    return path.read_bytes() == other.read_bytes()


def _check_tokenizer_config(path: pathlib.Path) -> None:
    """Refuses a tokenizer's config that names files outside its folder."""
    if path.is_file():
        raw = check_object(read_json(path), path, error=CheckpointError)
        for key, value in raw.items():
            if key.endswith("_file") and value is not None:
                plain_name(value, f"{path}: {key}")


def _merges(folder: pathlib.Path) -> list[str]:
    lines = (folder / "merges.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#version")]


@functools.lru_cache(maxsize=1024)
def token_ids(processor: Processor, instruction: str) -> np.ndarray:
    """Tokenizes an instruction as ``int32[L]``; robots repeat theirs, so ids are kept.

    Threads may call it; the tokenizer itself is not safe for them.
    """
    with _TOKENIZING:
        return processor.tokenize([instruction])[0]


def load_tokenizer(processor: Processor) -> None:
    """Loads the tokenizer in a thread; an error is raised where it is used."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
    pool.submit(token_ids, processor, "wait")
    pool.shutdown(wait=False)


@functools.cache
def _tokenizer(folder: str) -> Any:
    # transformers warns that PyTorch is missing; a tokenizer does not need it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import BartTokenizer  # seconds to import, so only when used

    return BartTokenizer.from_pretrained(folder)
