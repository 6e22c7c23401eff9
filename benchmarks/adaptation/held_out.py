"""Mean l1 of trained cells on demonstrations that none of them has seen."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

from data.rows.domains import resolve_domains
from data.sources import open_mixture
from data.stream.pipeline import one_pass
from data.trajectory import Source
from xvla_jax.actions import action_space
from xvla_jax.config import XVLAConfig
from xvla_jax.models.xvla import XVLA
from xvla_jax.pretrained import load_checkpoint
from xvla_jax.processor import Processor
from xvla_jax.sharding import make_mesh
from xvla_jax.training.validation import Validation, make_eval_step

_BATCH = 16
_STRIDE = 3  # every so many samples of an episode
_STEPS = 10  # of denoising, as a policy takes them


class HeldOut:
    """The held-out demonstrations of a data folder; models of one shape share a program.

    Args:
        dataset: its row.
        root: the data folder.
    """

    def __init__(self, dataset: str, root: pathlib.Path) -> None:
        (self._source,) = open_mixture(((dataset, 1.0),), root)
        self._validation = functools.cache(functools.partial(_validation, self._source))
        self._mesh = make_mesh(1, 1)

    def l1(self, run: pathlib.Path) -> float:
        """Returns the mean absolute error of the chunks of a run, in the unit of the actions.

        Raises:
            CheckpointError: the run has no checkpoint.
        """
        loaded = load_checkpoint(run)
        validation = self._validation(loaded.config, loaded.processor)
        params: Any = loaded.params  # in the place of a state; `_same` is what acts
        return validation.measure(params, self._mesh)["val_l1"]


def _validation(source: Source, config: XVLAConfig, processor: Processor) -> Validation:
    spec = source.reader.spec
    one = functools.partial(
        one_pass,
        [source],
        batch_size=_BATCH,
        num_actions=config.num_actions,
        action_width=action_space(config).width,
        num_views=processor.num_views,
        image_size=processor.image_size,
        tokenize=processor.tokenize,
        fit=processor.training_fit,
        stride=_STRIDE,
        domains=resolve_domains([spec]),
    )
    return Validation(
        eval_step=make_eval_step(XVLA(config), processor, steps=_STEPS),
        params_of=_same,
        sources={spec.name: one},
        batch_size=_BATCH,
        every=1,
        present_views=len(spec.views),
        seed=0,
    )


def _same(params: Any) -> Any:
    return params
