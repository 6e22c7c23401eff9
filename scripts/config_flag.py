"""The flag ``--config``: an unknown field is one line, and what was set is known."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import app, flags
from ml_collections import config_flags


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses a command line for `absl.app.run`; exits with one line where a field is unknown."""
    try:
        return app.parse_flags_with_usage(list(argv))
    except (AttributeError, KeyError, TypeError) as error:
        fields = [text for text in argv if text.startswith("--config.")]
        meant = [t for t in fields if any(p in str(error) for p in t.split("=")[0].split(".")[1:])]
        if not meant:
            raise
        sys.exit(
            f"error: {' '.join(meant)}: the config has no such field ({error}). "
            "configs/base.py lists the fields; the action space of a checkpoint is set by "
            "config.action_mode and config.real_action_dim"
        )


def asked_fields(holder: flags.FlagHolder[object]) -> frozenset[str]:
    """Fields of the config that were set on the command line, as ``model.depth``."""
    return frozenset(config_flags.get_override_values(flags.FLAGS[holder.name]))
