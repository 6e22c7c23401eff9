"""From an instruction and camera images to what the model takes.

That is ids ``[L]`` and images ``[V, S, S, 3]``. Image side, the way to it, number of views, text
length and the units of the numbers are part of a checkpoint's contract: another value gives other
actions. They are read from the checkpoint's files; none of the code that comes with it is run.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from xvla_jax import resizing
from xvla_jax.batch import IMAGE_MEAN, IMAGE_STD
from xvla_jax.errors import CheckpointError, InputError
from xvla_jax.scaling import Scaling

PREPROCESSOR_NAME: Final = "preprocessor_config.json"
TOKENIZER_FILES: Final = ("vocab.json", "merges.txt")
_BUNDLED_TOKENIZER: Final = pathlib.Path(__file__).parent / "assets" / "bart_tokenizer"

# Fields of the released file that we honour by refusing any other value.
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
        resize: how other images become S x S; a row of ``resizing.RESIZING``.
        resample: PIL filter number where they are stretched; 3 = bicubic.
        mean: of the normalisation, RGB.
        std: of the normalisation, RGB.
        tokenizer_dir: folder with ``vocab.json`` and ``merges.txt``; the bundled BART tokenizer if
            None.
        state: what proprio is normalised by; None: the network takes the robot's units.
        action: the same for actions.
        extra: JSON text of the fields that were read and mean nothing here; they are written back.
    """

    image_size: int = 224
    num_views: int = 3
    text_length: int = 50
    resize: str = "stretch"
    resample: int = 3
    mean: tuple[float, ...] = IMAGE_MEAN
    std: tuple[float, ...] = IMAGE_STD
    tokenizer_dir: str | None = None
    state: Scaling | None = None
    action: Scaling | None = None
    extra: str = dataclasses.field(default="{}", repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuses a way of resizing that does not exist."""
        if self.resize not in resizing.RESIZING:
            raise CheckpointError(
                f"resize is {self.resize!r}; known are {', '.join(resizing.RESIZING)}"
            )

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Processor:
        """Reads ``preprocessor_config.json``, and the tokenizer's files where the folder has them.

        Raises:
            CheckpointError: the file is missing, or asks for something that this processor does not
                do.
        """
        path = pathlib.Path(folder) / PREPROCESSOR_NAME
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file; image size and resampling are part of a checkpoint"
            )
        raw = _read_json(path)
        ours = _fields(raw.pop(_OURS, {}), where=f"{path}: section {_OURS}")
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
            tokenizer_dir=_tokenizer_dir(path.parent),
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
        if ours != Processor()._ours():  # the reference's class constants go unsaid
            raw[_OURS] = ours
        (folder / PREPROCESSOR_NAME).write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")
        for name in TOKENIZER_FILES:
            shutil.copyfile(self._tokenizer_path / name, folder / name)
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"model_max_length": 1024, "tokenizer_class": "BartTokenizer"}) + "\n"
        )

    def _ours(self) -> dict[str, Any]:
        """Fields that the released file has no place for; those that ask for nothing go unsaid."""
        ours: dict[str, Any] = {"num_views": self.num_views, "text_length": self.text_length}
        if self.resize != "stretch":
            ours["resize"] = self.resize
        for name in _SCALINGS:
            if getattr(self, name):
                ours[name] = dataclasses.asdict(getattr(self, name))
        return ours

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint item.

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
    def from_dict(cls, values: Mapping[str, Any]) -> Processor:
        """Inverse of `to_dict`, with the bundled tokenizer."""
        return cls(**_fields(values, where="the processor of a checkpoint"))

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Instructions -> ``int32[n, L]``.

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
        """Present views of one sample -> `pixel_dtype` ``[V, S, S, 3]`` and ``bool[V]``.

        Raises:
            InputError: there are too many or none, or one is no uint8 RGB image of a size that
                the checkpoint takes.
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
        """One image ``uint8[H, W, 3]`` RGB as the network sees it, `pixel_dtype` ``[S, S, 3]``."""
        side, mode = self.image_size, self.resize
        return resizing.resize(image, side, mode, resample=self.resample, mean=self.mean, who=who)

    def fit_levels(self, image: np.ndarray) -> np.ndarray:
        """As `fit`, rounded to the uint8 of a training `Batch`: half a level from it at most."""
        return np.rint(self.fit(image)).astype(np.uint8)

    @property
    def training_fit(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """`fit_levels`, or None where it is what ``data/`` does by itself: stretch, bicubic."""
        usual = (self.resize, self.resample) == (Processor.resize, Processor.resample)
        return None if usual else self.fit_levels

    @property
    def pixel_dtype(self) -> type[np.generic]:
        """Type of the images that `prepare_images` gives: uint8, or float32 of 0 .. 255."""
        return resizing.pixel_dtype(self.resize)

    @property
    def _tokenizer_path(self) -> pathlib.Path:
        return pathlib.Path(self.tokenizer_dir) if self.tokenizer_dir else _BUNDLED_TOKENIZER


_SCALINGS: Final = ("state", "action")


def _fields(raw: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Fields of a `Processor` out of JSON values."""
    unknown = sorted(set(raw) - {field.name for field in dataclasses.fields(Processor)})
    if unknown:
        raise CheckpointError(f"{where}: unknown fields {unknown}")
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    return fields | {k: Scaling.from_dict(raw[k]) for k in _SCALINGS if raw.get(k)}


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not JSON ({error}); fetch it again") from error


def _tokenizer_dir(folder: pathlib.Path) -> str | None:
    """The folder if it holds another tokenizer than the bundled one.

    More entries make no other: those from 50,265 on are names of places in Florence-2, which no
    instruction contains.
    """
    if (folder / "vocab.json").is_file():
        vocabulary = _read_json(folder / "vocab.json")
    elif (folder / "tokenizer.json").is_file():
        vocabulary = _read_json(folder / "tokenizer.json")["model"]["vocab"]
    else:
        return None
    bundled = _read_json(_BUNDLED_TOKENIZER / "vocab.json")
    merges = folder / "merges.txt"
    same_merges = not merges.is_file() or _merges(folder) == _merges(_BUNDLED_TOKENIZER)
    if same_merges and vocabulary.items() >= bundled.items():
        return None
    if not all((folder / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(
            f"{folder}: its vocabulary is another than X-VLA's (BART's), and there are not both of "
            f"{', '.join(TOKENIZER_FILES)} to read it with"
        )
    return str(folder)


def _merges(folder: pathlib.Path) -> list[str]:
    lines = (folder / "merges.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#version")]


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, float):
        return isinstance(found, float) and abs(found - wanted) < 1e-9
    return found is wanted


@functools.cache
def _tokenizer(folder: str) -> Any:
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it misses PyTorch, we do not
    from transformers import BartTokenizer

    return BartTokenizer.from_pretrained(folder)
