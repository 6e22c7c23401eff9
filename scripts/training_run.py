"""What a training run is made of, out of its config: model, data, optimizer, mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from data.contracts import contracts_of
from data.mixtures import mixture
from data.pipeline import Batches, Source, batches
from data.readers import open_mixture
from xvla_jax.actions import action_space
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract
from xvla_jax.errors import ConfigError
from xvla_jax.models.xvla import XVLA
from xvla_jax.optimizer import OptimizerConfig
from xvla_jax.pretrained import Pretrained, load_checkpoint, model_item
from xvla_jax.processor import Processor
from xvla_jax.sharding import make_mesh
from xvla_jax.train import Recipe

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """The parts of a run, before anything is trained.

    Attributes:
        config: as configs/base.py has it.
        loaded: the checkpoint to start from; None for random weights.
        processor: instruction to ids, size of the pictures.
        sources: what is trained on.
        recipe: model and optimizer.
        mesh: over all devices.
    """

    config: Any
    loaded: Pretrained | None
    processor: Processor
    sources: list[Source]
    recipe: Recipe
    mesh: Mesh

    @classmethod
    def open(cls, config: Any) -> TrainingRun:
        """Reads the checkpoint, opens the sources.

        Raises:
            ConfigError, ValueError, OSError: something of it does not fit, or is not there.
        """
        if config.dtype not in _DTYPES:
            raise ConfigError(f"config.dtype is {config.dtype!r}; allowed are {', '.join(_DTYPES)}")
        loaded = load_checkpoint(config.init_from) if config.init_from else None
        model_config = loaded.config if loaded else XVLAConfig.from_dict(config.model.to_dict())
        model = XVLA(model_config, dtype=_DTYPES[config.dtype], remat=config.remat)
        optimizer = OptimizerConfig(**config.optimizer.to_dict())
        return cls(
            config=config,
            loaded=loaded,
            processor=(loaded and loaded.processor) or Processor(**config.processor.to_dict()),
            sources=open_mixture(mixture(config.data.mixture), config.data.root),
            recipe=Recipe(model, optimizer, config.accumulate, config.ema_decay),
            mesh=make_mesh(config.mesh.data, config.mesh.fsdp),
        )

    @property
    def model_config(self) -> XVLAConfig:
        """Of the model that is trained."""
        return self.recipe.model.config

    @property
    def present_views(self) -> int:
        """View slots that any sample fills."""
        return max(len(source.reader.spec.views) for source in self.sources)

    @functools.cached_property
    def model_item(self) -> dict[str, Any]:
        """What the checkpoints say of the model; the contracts are those of the data."""
        mode = action_space(self.model_config).mode
        rows = contracts_of(
            [source.reader.spec for source in self.sources],
            num_actions=self.model_config.num_actions,
        )
        contracts = {row["domain_id"]: Contract(action_space=mode, **row) for row in rows}
        return model_item(self.model_config, self.processor, contracts, source=self.loaded)

    def batches(self, position: Mapping[str, Any] | None) -> Batches:
        """The stream of this process from a saved position on, or from its beginning."""
        config = self.config
        return batches(
            self.sources,
            batch_size=config.batch_size,
            num_actions=self.model_config.num_actions,
            num_views=self.processor.num_views,
            image_size=self.processor.image_size,
            tokenize=self.processor.tokenize,
            seed=config.seed,
            shuffle_buffer=config.data.shuffle_buffer,
            lanes=config.data.lanes,
            max_bad_episodes=config.data.max_bad_episodes,
            position=position,
            host=jax.process_index(),
            hosts=jax.process_count(),
            cache_mb=config.data.cache_mb,
        )
