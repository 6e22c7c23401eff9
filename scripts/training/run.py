"""What a training run is made of, out of its config: model, data, optimizer, mesh."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from rich.table import Table

from data.rows.contracts import contracts_of
from data.rows.mixtures import mixture
from data.sources import hold_out, open_metas, open_mixture, origin
from data.stalls import end_reads_after
from data.stream.pipeline import Batches, batches, one_pass
from data.trajectory import Source
from scripts.training.initial_model import check_rows, initial_config, load_initial
from xvla_jax.actions import action_space
from xvla_jax.batch import abstract_batch
from xvla_jax.checkpoints.fingerprints import params_digest
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract
from xvla_jax.errors import ConfigError
from xvla_jax.lora import LoraConfig
from xvla_jax.models.xvla import XVLA
from xvla_jax.planning.flops import peak_flops, step_flops
from xvla_jax.pretrained import ADAPTER, Pretrained, adapter_section, is_lora_run, model_item
from xvla_jax.processor import Processor
from xvla_jax.sharding import BATCH_SPEC, global_batch_size, make_mesh
from xvla_jax.training.optimizer import GroupRow, OptimizerConfig
from xvla_jax.training.provenance import provenance
from xvla_jax.training.state import Recipe, abstract_state
from xvla_jax.training.telemetry import Watch
from xvla_jax.training.validation import Validation, make_eval_step


def group_table(rows: Sequence[GroupRow]) -> Table:
    """Group, parameters, highest learning rate of the run, and until when it is frozen."""
    table = Table("group")
    for heading in ("parameters", "learning rate", "frozen until step"):
        table.add_column(heading, justify="right")
    for row in rows:
        until = "always" if row.frozen_until is None else str(row.frozen_until or "-")
        table.add_row(row.name, f"{row.parameters:,}", f"{row.learning_rate:g}", until)
    learning = [row.parameters for row in rows if row.frozen_until is not None]
    table.add_section()
    table.add_row("learning", f"{sum(learning):,}")
    return table


_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def recipe_of(config: Any, model_config: XVLAConfig) -> Recipe:
    """Model and optimizer of a config.

    Raises:
        ConfigError: a value that does not exist or does not fit.
    """
    if config.dtype not in _DTYPES:
        raise ConfigError(f"config.dtype is {config.dtype!r}; allowed are {', '.join(_DTYPES)}")
    return Recipe(
        XVLA(
            model_config,
            dtype=_DTYPES[config.dtype],
            remat=config.remat,
            scan_vision=config.scan_vision,
        ),
        OptimizerConfig(**config.optimizer.to_dict()),
        config.accumulate,
        config.ema_decay,
        LoraConfig(**config.lora.to_dict()) if config.lora.rank else None,
    )


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """The parts of a run, before anything is trained.

    Attributes:
        config: as configs/base.py has it.
        loaded: the checkpoint to start from; None for random weights.
        processor: instruction to ids, size of the pictures.
        sources: what is trained on.
        held_out: episodes of the same sources to measure on; empty where nothing is measured.
        recipe: model and optimizer.
        mesh: over all devices.
        base: path and digest of the weights that the run begins with; None for random ones.
    """

    config: Any
    loaded: Pretrained | None
    processor: Processor
    sources: list[Source]
    held_out: list[Source]
    recipe: Recipe
    mesh: Mesh
    base: dict[str, str] | None

    @classmethod
    def open(cls, config: Any, asked: Iterable[str] = ()) -> TrainingRun:
        """Opens the sources and, where they fit its action space, reads the checkpoint.

        Args:
            config: as configs/base.py has it.
            asked: fields of it that were set on the command line, as ``model.depth``.

        Raises:
            ConfigError, ValueError, OSError: something of it does not fit, or is not there.
        """
        if config.lora.rank and (not config.init_from or is_lora_run(config.init_from)):
            raise ConfigError(
                f"config.lora.rank is {config.lora.rank} and config.init_from "
                f"{config.init_from!r}; an adapter needs a complete checkpoint. A LoRA run is "
                "made one by python -m scripts.convert_checkpoint RUN DST --layout=hf"
            )
        model_config = initial_config(config, asked)
        end_reads_after(config.data.read_limit_s)
        opened = _open_sources(config.data)
        specs = [source.reader.spec for source in opened]
        check_rows(specs, model_config, any_width=config.from_scratch)
        sources, held_out = _split(opened, config.validation)
        recipe = recipe_of(config, model_config)
        loaded = load_initial(config)
        if loaded:
            _check_processor(loaded.processor, config.init_from)
        return cls(
            config=config,
            loaded=loaded,
            processor=(loaded and loaded.processor) or Processor(**config.processor.to_dict()),
            sources=sources,
            held_out=held_out,
            recipe=recipe,
            mesh=make_mesh(config.mesh.data, config.mesh.fsdp),
            base=loaded and _identity(config.init_from, loaded),
        )

    def without_weights(self) -> TrainingRun:
        """The same run when its state has been made: the host's copy of the weights can go."""
        if self.loaded is None:
            return self
        return dataclasses.replace(self, loaded=dataclasses.replace(self.loaded, params={}))

    @property
    def model_config(self) -> XVLAConfig:
        """Of the model that is trained."""
        return self.recipe.model.config

    @property
    def batch_size(self) -> int:
        """Samples of a step, over all devices."""
        return global_batch_size(
            self.config.batch_size, per=self.config.batch_size_per, devices=self.mesh.size
        )

    @property
    def present_views(self) -> int:
        """View slots that any sample fills."""
        return max(len(source.reader.spec.views) for source in self.sources)

    @property
    def data_rows(self) -> list[dict[str, Any]]:
        """What each source is, for comparison between hosts."""
        specs = [
            (source.reader.spec, sum(source.reader.episodes_per_part), source.weight)
            for source in self.sources
        ]
        return [
            {"name": spec.name, "row": spec.fingerprint, "episodes": episodes, "weight": weight}
            for spec, episodes, weight in specs
        ]

    @functools.cached_property
    def model_item(self) -> dict[str, Any]:
        """What the checkpoints say of the model.

        The contracts are those of the data; domains that it has no part in keep theirs.
        """
        mode = action_space(self.model_config).mode
        rows = contracts_of(
            [source.reader.spec for source in self.sources],
            num_actions=self.model_config.num_actions,
        )
        contracts = dict(self.loaded.contracts) if self.loaded else {}
        contracts |= {row["domain_id"]: Contract(action_space=mode, **row) for row in rows}
        item = model_item(self.model_config, self.processor, contracts, source=self.loaded)
        lora = self.recipe.lora
        if lora is not None and self.base is not None:
            path = self.base["path"]
            item[ADAPTER] = adapter_section(
                lora.peft(path),
                path,
                self.base["sha256"],
                relabelled=bool(self.config.action_mode or self.config.real_action_dim),
            )
        return item

    @functools.cached_property
    def origins(self) -> list[dict[str, Any]]:
        """Where the samples come from, for the provenance of the checkpoints."""
        held = {s.reader.spec.name: sum(s.reader.episodes_per_part) for s in self.held_out}
        return [
            origin(source, held_out=held.get(source.reader.spec.name, 0)) for source in self.sources
        ]

    def provenance(self, code: Mapping[str, Any]) -> dict[str, Any]:
        """Where the checkpoints of this run come from."""
        return provenance(self.origins, self.mesh, code=code, init_from=self.base)

    @functools.cached_property
    def validation(self) -> Validation | None:
        """What is measured on held-out episodes; None where config.validation.every is 0."""
        chosen = self.config.validation
        if not self.held_out:
            return None
        return Validation(
            eval_step=make_eval_step(self.recipe.model, self.processor, steps=chosen.steps),
            params_of=self.recipe.acting,
            sources={
                source.reader.spec.name: functools.partial(self._one_pass, source)
                for source in self.held_out
            },
            batch_size=self.batch_size,
            every=chosen.every,
            present_views=self.present_views,
            seed=self.config.seed,
        )

    def watch(self, step: int, *, began: float) -> Watch:
        """The timekeeper of a process that began at ``began`` (monotonic) with step ``step``."""
        sharding = NamedSharding(self.mesh, BATCH_SPEC)
        batch = abstract_batch(
            self.model_config,
            self.batch_size,
            num_views=self.processor.num_views,
            shown=self.present_views,
            image_size=self.processor.image_size,
            text_length=self.processor.text_length,
            jitter=False,
            sharding=sharding,
        )
        state = abstract_state(self.recipe, self.mesh)
        peak = peak_flops(jax.devices()[0].device_kind)
        return Watch(
            step,
            self.recipe.config.iters,
            began=began,
            flops=step_flops(self.recipe, self.processor, state, batch),
            peak=peak and peak * jax.device_count(),
        )

    def _one_pass(self, source: Source) -> Iterator[Mapping[str, np.ndarray]]:
        return one_pass([source], stride=self.config.validation.stride, **self._batch_options)

    @property
    def _batch_options(self) -> dict[str, Any]:
        """What training and validation batches have in common."""
        return {
            "batch_size": self.batch_size,
            "num_actions": self.model_config.num_actions,
            "action_width": action_space(self.model_config).width,
            "num_views": self.processor.num_views,
            "image_size": self.processor.image_size,
            "tokenize": self.processor.tokenize,
            "fit": self.processor.training_fit,
            "max_bad_episodes": self.config.data.max_bad_episodes,
        }

    def batches(self, position: Mapping[str, Any] | None) -> Batches:
        """The stream of this process from a saved position on, or from its beginning."""
        config = self.config
        return batches(
            self.sources,
            **self._batch_options,
            seed=config.seed,
            shuffle_buffer=config.data.shuffle_buffer,
            lanes=config.data.lanes,
            position=position,
            host=jax.process_index(),
            hosts=jax.process_count(),
            cache_mb=config.data.cache_mb,
        )


def _check_processor(processor: Processor | None, path: str) -> None:
    """Refuses weights whose preprocessing is unknown, or is more than training does."""
    if processor is None:
        raise ConfigError(
            f"config.init_from={path} has no preprocessor_config.json, and no LeRobot config.json "
            "that says as much; image size, resizing and text length belong to the weights"
        )
    for name, scaling in (("STATE", processor.state), ("ACTION", processor.action)):
        if scaling:
            raise ConfigError(
                f"config.init_from={path}: LeRobot's normalization_mapping.{name} is "
                f"{scaling.mode}; training takes the robot's units alone, so these weights can be "
                "served and converted, not trained on"
            )


def _identity(path: str, loaded: Pretrained) -> dict[str, str]:
    return {"path": path, "sha256": params_digest(loaded.params, loaded.config)}


def _open_sources(data: Any) -> list[Source]:
    """The sources that config.data names, in one of the two ways."""
    if bool(data.train_metas_path) == bool(data.mixture):
        raise ConfigError(
            f"config.data.mixture is {data.mixture!r} and config.data.train_metas_path "
            f"{data.train_metas_path!r}; one of them must be set, the other empty"
        )
    if data.train_metas_path:
        return open_metas(
            data.train_metas_path, data_root=data.root, outside_root=data.outside_root
        )
    return open_mixture(mixture(data.mixture), data.root, outside_root=data.outside_root)


def _split(sources: list[Source], validation: Any) -> tuple[list[Source], list[Source]]:
    """Sources to train on and held-out ones, as config.validation says."""
    if not validation.every:
        return sources, []
    pairs = [hold_out(source, validation.episodes) for source in sources]
    return [training for training, _ in pairs], [held for _, held in pairs]
