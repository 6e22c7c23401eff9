"""The parts of a training run, made from its config: model, data, optimizer, mesh."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from data.jitter import any_drawn
from data.rows.contracts import contracts_of
from data.rows.domains import domain_id_of
from data.rows.mixtures import mixture
from data.sources import hold_out, open_metas, open_mixture, origin
from data.stalls import end_reads_after
from data.stream.pipeline import Batches, batches, one_pass
from data.trajectory import Source
from scripts.training.domains import RunDomains, run_domains
from scripts.training.initial_model import (
    check_processor,
    check_rows,
    computing_dtype,
    distillation,
    identity_of,
    initial_headers,
    load_initial,
)
from scripts.training.mixture_table import shares_of
from scripts.training.packed_views import PackedViews, SourceViews, packed_mixture
from xvla_jax.actions import action_space
from xvla_jax.batch import abstract_batch
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract
from xvla_jax.errors import ConfigError
from xvla_jax.lora import LoraConfig
from xvla_jax.models.kernels import check_attention
from xvla_jax.models.xvla import XVLA
from xvla_jax.objectives.distillation import Distillation
from xvla_jax.planning.flops import flops_of, peak_of, step_flops
from xvla_jax.pretrained import ADAPTER, Pretrained, adapter_section, is_lora_run, model_item
from xvla_jax.processor import Processor
from xvla_jax.sharding import BATCH_SPEC, global_batch_size, make_mesh
from xvla_jax.training.optimizer import OptimizerConfig
from xvla_jax.training.provenance import provenance
from xvla_jax.training.state import Recipe, TrainState, abstract_state
from xvla_jax.training.step import make_train_step
from xvla_jax.training.telemetry import Watch
from xvla_jax.training.validation import Validation, make_eval_step


def recipe_of(
    config: Any,
    model_config: XVLAConfig,
    *,
    packed_views: float = 0.0,
    distill: Distillation | None = None,
) -> Recipe:
    """Returns model and optimizer of a config.

    Args:
        config: as configs/base.py has it.
        model_config: of the model that is trained.
        packed_views: share of view slots that are packed.
        distill: the teacher, if there is one.

    Raises:
        ConfigError: a value that does not exist or does not fit.
    """
    return Recipe(
        XVLA(
            model_config,
            dtype=computing_dtype(config),
            remat=config.remat,
            scan_vision=config.scan_vision,
            packed_views=packed_views,
            attention=config.attention,
        ),
        OptimizerConfig(**config.optimizer.to_dict()),
        config.accumulate,
        config.ema_decay,
        LoraConfig(**config.lora.to_dict()) if config.lora.rank else None,
        noise_draws=config.noise_draws,
        distill=distill,
    )


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """The parts of a run, before anything is trained.

    Attributes:
        config: as configs/base.py has it.
        loaded: the checkpoint to start from; None for random weights.
        processor: instruction to ids, size of the images.
        sources: episodes to train on.
        held_out: episodes of the same sources to measure on; empty without validation.
        recipe: model and optimizer.
        mesh: over all devices.
        base: path and digest of the initial weights; None for random ones.
        domains: names of the datasets' domains and of the checkpoint's, and their ids.
        packed: the share of view slots that is packed; None where config.packed_views is empty.
    """

    config: Any
    loaded: Pretrained | None
    processor: Processor
    sources: list[Source]
    held_out: list[Source]
    recipe: Recipe
    mesh: Mesh
    base: dict[str, str] | None
    domains: RunDomains
    packed: PackedViews | None = None

    @classmethod
    def open(
        cls,
        config: Any,
        asked: Iterable[str] = (),
        *,
        workdir: pathlib.Path | None = None,
        weights: bool = True,
    ) -> TrainingRun:
        """Opens the sources, checks that they fit the action space, and reads the checkpoint.

        Args:
            config: as configs/base.py has it.
            asked: fields of it that were set on the command line, as ``model.depth``.
            workdir: keeps frame counts where the data folder is read-only.
            weights: read them; without, the run can be compiled and not trained.

        Raises:
            ConfigError, ValueError, OSError: a part does not fit or is missing.
        """
        if config.lora.rank and (not config.init_from or is_lora_run(config.init_from)):
            raise ConfigError(
                f"config.lora.rank is {config.lora.rank} and config.init_from "
                f"{config.init_from!r}; an adapter needs a complete checkpoint. A LoRA run is "
                "made into one by python -m scripts.convert_checkpoint RUN DST --layout=hf"
            )
        model_config, headers = initial_headers(config, asked)
        end_reads_after(config.data.read_limit_s)
        opened = _open_sources(config.data, workdir)
        # Headers and rows are compared before the weights, of gigabytes, are read.
        specs = [source.reader.spec for source in opened]
        check_rows(specs, model_config, any_width=config.from_scratch)
        domains = run_domains(config, asked, specs, model_config, headers)
        sources, held_out = _split(opened, config.validation)
        mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
        check_attention(config.attention, mesh.devices.flat[0].platform)
        packed = _packed(config, sources, mesh)
        recipe = recipe_of(
            config,
            domains.of_model(model_config),
            packed_views=packed.share if packed else 0.0,
            distill=distillation(config, headers, domains),
        )
        loaded = load_initial(config) if weights else headers
        base = identity_of(config.init_from, loaded) if weights and loaded else None
        if loaded:
            check_processor(loaded.processor, config.init_from)
            if weights:
                loaded = domains.added_to(loaded, specs, seed=config.seed)
        return cls(
            config=config,
            loaded=loaded,
            processor=(loaded and loaded.processor) or Processor(**config.processor.to_dict()),
            sources=sources,
            held_out=held_out,
            recipe=recipe,
            mesh=mesh,
            base=base,
            domains=domains,
            packed=packed,
        )

    def without_weights(self) -> TrainingRun:
        """Returns the run without the host's copy of the weights, once the state is made."""
        if self.loaded is None:
            return self
        return dataclasses.replace(self, loaded=dataclasses.replace(self.loaded, params={}))

    @property
    def model_config(self) -> XVLAConfig:
        """Config of the model."""
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
    def masked(self) -> bool:
        """True where a dataset lacks a channel, so that batches carry a mask."""
        return any(source.reader.spec.unrecorded for source in self.sources)

    @property
    def data_rows(self) -> list[dict[str, Any]]:
        """Row, domain, episodes and weight of each source, for comparison between hosts."""
        specs = [
            (source.reader.spec, sum(source.reader.episodes_per_part), source.weight)
            for source in self.sources
        ]
        return [
            {
                "name": spec.name,
                "row": spec.fingerprint,
                "domain_id": domain_id_of(spec, self.domains.ids),
                "episodes": episodes,
                "weight": weight,
            }
            for spec, episodes, weight in specs
        ]

    @functools.cached_property
    def contracts(self) -> dict[int, Contract]:
        """Action contracts of the data; domains without data keep those of the checkpoint."""
        mode = action_space(self.model_config).mode
        rows = contracts_of(
            [source.reader.spec for source in self.sources],
            num_actions=self.model_config.num_actions,
            domains=self.domains.ids,
        )
        contracts = dict(self.loaded.contracts) if self.loaded else {}
        return contracts | {row["domain_id"]: Contract(action_space=mode, **row) for row in rows}

    @functools.cached_property
    def model_item(self) -> dict[str, Any]:
        """The ``model`` item of the checkpoints."""
        item = model_item(
            self.model_config,
            self.processor,
            self.contracts,
            source=self.loaded,
            domains=self.domains.ids,
        )
        if (lora := self.recipe.lora) is not None and self.base is not None:
            path = self.base["path"]
            item[ADAPTER] = adapter_section(
                lora.peft(path),
                path,
                self.base["sha256"],
                relabelled=bool(self.config.action_mode or self.config.real_action_dim),
                delayed=self.config.rtc.max_delay >= 0,
            )
        return item

    @functools.cached_property
    def origins(self) -> list[dict[str, Any]]:
        """Origin of the samples, for the provenance of the checkpoints."""
        held = {s.reader.spec.name: sum(s.reader.episodes_per_part) for s in self.held_out}
        return [
            origin(
                source,
                held_out=held.get(source.reader.spec.name, 0),
                domain_id=domain_id_of(source.reader.spec, self.domains.ids),
            )
            | {"share": share}
            for source, share in zip(self.sources, shares_of(self.sources), strict=True)
        ]

    def provenance(self, code: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the provenance of the checkpoints of this run."""
        return provenance(
            self.origins, self.mesh, code=code, init_from=self.base, new_domains=self.domains.new
        )

    @functools.cached_property
    def validation(self) -> Validation | None:
        """Measurement on held-out episodes; None if config.validation.every is 0."""
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

    def lower_step(self) -> jax.stages.Lowered:
        """Lowers the train step for the state and the batches of this run."""
        return self._traced_step.lower()

    @functools.cached_property
    def _traced_step(self) -> jax.stages.Traced:
        with jax.set_mesh(self.mesh):
            return self.train_step.trace(self.abstract_state, self._abstract_batch)

    @functools.cached_property
    def train_step(self) -> Any:
        """The jitted train step."""
        return make_train_step(self.recipe, self.processor, seed=self.config.seed)

    @functools.cached_property
    def step_flops(self) -> int:
        """FLOPs of a train step over all devices."""
        model = self.recipe.model
        own = (self.mesh.size, model.remat, model.attention) == (1, "none", "xla")
        if own:  # this run's own program
            return flops_of(self._traced_step)
        return step_flops(self.recipe, self.processor, self.abstract_state, self._abstract_batch)

    @functools.cached_property
    def abstract_state(self) -> TrainState:
        """Shapes and placement of the train state."""
        return abstract_state(self.recipe, self.mesh)

    @property
    def _abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        return abstract_batch(
            self.model_config,
            self.batch_size,
            num_views=self.processor.num_views,
            shown=self.present_views,
            image_size=self.processor.image_size,
            text_length=self.processor.text_length,
            jitter=any_drawn(source.reader.spec.augment for source in self.sources),
            channel_mask=self.masked,
            sharding=NamedSharding(self.mesh, BATCH_SPEC),
        )

    def watch(self, step: int, *, began: float) -> Watch:
        """Returns the timekeeper of a process that began at ``began`` (monotonic)."""
        peak, iters = peak_of(jax.devices()[0].device_kind), self.recipe.config.iters
        most = peak and peak.flops * jax.device_count()
        return Watch(step, iters, began=began, flops=self.step_flops, peak=most)

    def _one_pass(self, source: Source) -> Iterator[Mapping[str, np.ndarray]]:
        # The mask in all batches, or the step would be compiled twice.
        return one_pass(
            [source],
            stride=self.config.validation.stride,
            masked=self.masked,
            **self._batch_options,
        )

    @property
    def _batch_options(self) -> dict[str, Any]:
        """Options that training and validation batches share."""
        return {
            "batch_size": self.batch_size,
            "num_actions": self.model_config.num_actions,
            "action_width": action_space(self.model_config).width,
            "num_views": self.processor.num_views,
            "image_size": self.processor.image_size,
            "tokenize": self.processor.tokenize,
            "fit": self.processor.training_fit,
            "max_bad_episodes": self.config.data.max_bad_episodes,
            "domains": self.domains.ids,
        }

    def batches(self, position: Mapping[str, Any] | None) -> Batches:
        """Opens the stream of this process from a saved position on, or from its start."""
        config = self.config
        return batches(
            self.sources,
            **self._batch_options,
            seed=config.seed,
            shuffle_buffer=config.data.shuffle_buffer,
            lanes=config.data.lanes,
            shuffle_per=config.data.shuffle_per,
            deal=config.data.deal,
            position=position,
            host=jax.process_index(),
            hosts=jax.process_count(),
            cache_mb=config.data.cache_mb,
        )


def _packed(config: Any, sources: Sequence[Source], mesh: Mesh) -> PackedViews | None:
    """Returns the share of view slots to pack, from the first batches of the stream."""
    if not config.packed_views:
        return None
    size = global_batch_size(config.batch_size, per=config.batch_size_per, devices=mesh.size)
    views = [(source.reader.spec, source.weight) for source in sources]
    views = [SourceViews(weight, len(spec.views), spec.main_view_share) for spec, weight in views]
    return packed_mixture(config, views, size, devices=mesh.size, parts=config.accumulate)


def _open_sources(data: Any, workdir: pathlib.Path | None) -> list[Source]:
    """Opens the sources that config.data names, by mixture or by meta files."""
    if bool(data.train_metas_path) == bool(data.mixture):
        raise ConfigError(
            f"config.data.mixture is {data.mixture!r} and config.data.train_metas_path "
            f"{data.train_metas_path!r}; one of them must be set, the other empty"
        )
    if data.train_metas_path and data.weights_per:
        raise ConfigError(
            f"config.data.weights_per is {data.weights_per!r}, which is for config.data.mixture; "
            "with config.data.train_metas_path it must be empty"
        )
    if data.train_metas_path:
        return open_metas(
            data.train_metas_path, data_root=data.root, outside_root=data.outside_root
        )
    return open_mixture(
        mixture(data.mixture, data.weights_per),
        data.root,
        outside_root=data.outside_root,
        spare=workdir,
    )


def _split(sources: list[Source], validation: Any) -> tuple[list[Source], list[Source]]:
    """Splits sources into those to train on and held-out ones, by config.validation."""
    if not validation.every:
        return sources, []
    pairs = [hold_out(source, validation.episodes) for source in sources]
    return [training for training, _ in pairs], [held for _, held in pairs]
