"""Command lines written for X-VLA's ``train.py``, turned into ours."""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

from configs import xvla_released

_CONFIG = "--config="


def carried_over(argv: Sequence[str]) -> list[str]:
    """Returns a command line with X-VLA's flags as fields of the config.

    Changes nothing unless ``--config`` is ``configs/xvla_released.py``, so that flags of these
    names stay unknown elsewhere.
    """
    named = [text[len(_CONFIG) :] for text in argv if text.startswith(_CONFIG)]
    if not named or pathlib.Path(named[-1]).name != pathlib.Path(xvla_released.__file__).name:
        return list(argv)
    known, rest = _parser().parse_known_args(list(argv))
    fields = vars(known)
    ours = [f"--workdir={folder}" for folder in (fields.pop("output_dir", None),) if folder]
    return [*rest, *ours, *(f"--config.{name}={_text(value)}" for name, value in fields.items())]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--output_dir", type=str)
    defaults = {name: default for name, (default, _) in xvla_released.FLAGS.items()}
    for name, default in (defaults | xvla_released.SAME_NAME).items():
        if isinstance(default, bool):
            parser.add_argument(f"--{name}", action="store_true")
        elif isinstance(default, tuple):
            parser.add_argument(f"--{name}", type=float, nargs=len(default))
        else:
            parser.add_argument(f"--{name}", type=type(default))
    return parser


def _text(value: object) -> str:
    return f"({', '.join(map(str, value))})" if isinstance(value, list) else str(value)
