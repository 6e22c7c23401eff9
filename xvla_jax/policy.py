"""Policy: observations in, chunks of actions out, jitted and batched.

`Policy.act` is `Policy.prepare`, which needs no device, and `Policy.run`, which runs `chunk`: one
program from images to actions for each number of views and each power of two of observations.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

from xvla_jax import flow, inpainting
from xvla_jax.actions import ActionSpace, action_space
from xvla_jax.batch import CHANNEL_MASK, Observation, check_observation, normalise
from xvla_jax.checkpoints.relabel import relabelled
from xvla_jax.compilation.ahead import Ahead
from xvla_jax.compilation.stored import lower_stored
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract, presumed_domains
from xvla_jax.errors import CheckpointError, InputError
from xvla_jax.inpainting import Prefix
from xvla_jax.lora import adapter_delay, adapter_space, load_adapter, merge_adapter
from xvla_jax.models.inference import abstract_inference_params, example_inputs, inference_params
from xvla_jax.models.int8 import int8_groups
from xvla_jax.models.xvla import XVLA, Context
from xvla_jax.plans import DEFAULT, EXACT, Form, SamplerPlan, named_plan
from xvla_jax.pretrained import load_checkpoint
from xvla_jax.processor import Processor, load_tokenizer, token_ids

_CLEAN: Final = "prefix_clean"  # an input of weights that were trained for delays
_Value = TypeVar("_Value", int, SamplerPlan)


@functools.partial(jax.jit, static_argnames=("model", "mean", "std", "form", "steps"))
def chunk(
    model: XVLA,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    params: Any,
    inputs: Mapping[str, jax.Array],
    *,
    form: Form = EXACT,
    steps: int | None = None,
) -> jax.Array:
    """Returns chunks ``float32[B, T, D]`` for inputs like `example_inputs`.

    Policies of one model share their programs, and no program keeps a policy's weights alive.
    Without ``steps`` the inputs have them, one number for each observation, as they have the
    tolerance of an adaptive ``form``. The prefix is an input, so one program serves all its
    lengths, 0 among them.
    """
    shape = (model.config.num_actions, action_space(model.config).width)
    # A draw of its own for each seed, so an observation's noise does not depend on its batch.
    noise = jax.vmap(lambda s: jax.random.normal(jax.random.key(s), shape, jnp.float32))(
        inputs["seed"]
    )
    pixels = normalise(inputs["images"], mean, std)
    context = model.apply(
        {"params": params}, pixels, inputs["view_mask"], inputs["input_ids"], method="encode"
    )
    return flow.sample(
        model,
        params,
        cast(Context, context),
        inputs["proprio"],
        inputs["domain_id"],
        noise=noise,
        steps=inputs["steps"] if steps is None else steps,
        refresh=form.refresh,
        tolerance=inputs["tolerance"] if form.adaptive else None,
        prefix=Prefix(inputs["prefix"], inputs["prefix_weight"], inputs.get(_CLEAN)),
        channel_mask=inputs.get(CHANNEL_MASK),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """An observation, checked and in the form of the device's inputs."""

    images: np.ndarray  # [present views, S, S, 3], of the processor's `pixel_dtype`
    input_ids: np.ndarray  # int32[L]
    proprio: np.ndarray  # float32[D], in the network's units, as the prefix is
    domain_id: int
    prefix: np.ndarray  # float32[T, D], zeros behind its rows
    prefix_weight: np.ndarray  # float32[T]: 1 committed, less guided, 0 free
    prefix_clean: int  # rows that the network takes as they are, at time 0
    channel_mask: np.ndarray  # bool[D]: True where the data of the domain record the channel
    held: np.ndarray  # float32[D], actions of the channels that they do not record


class Policy:
    """A checkpoint that acts.

    Batches are padded to the next power of two, so few programs are compiled. The noise of an
    observation is a function of its seed alone, so its result does not depend on its batch.

    Channels that the data of a domain do not record (`Contract.unrecorded`) are nothing that the
    policy knows: actions hold what the observation's proprio has there, or 0 where they are
    relative to it.

    Attributes:
        contracts: action contracts by domain id.
        domains: ids of domains by name.
        int8: groups of parameters that are int8, see ``models/int8.py``; none by default.
    """

    def __init__(
        self,
        config: XVLAConfig,
        params: Mapping[str, Any],
        processor: Processor,
        contracts: Mapping[int, Contract],
        *,
        dtype: Any = jnp.float32,
        domains: Mapping[str, int] | None = None,
        ahead: Iterable[tuple[int, int]] = (),
        plans: Iterable[SamplerPlan] = (DEFAULT,),
    ) -> None:
        """Puts the parameters on the default device.

        Without ``domains`` their names are those of X-VLA's released weights. Programs ``ahead``
        (views, batch size) are compiled for all ``plans``, and the tokenizer is loaded, in the
        meantime.
        """
        self.config = config
        self.processor = processor
        self.contracts = dict(contracts)
        self.domains = presumed_domains(config, {}) if domains is None else dict(domains)
        # One more input of the program, where it is needed.
        self._masks = any(contract.unrecorded for contract in self.contracts.values())
        self.space = action_space(config)
        _check_scalings(processor, self.space)
        self.model = XVLA(config, dtype=dtype, unroll=True)
        self.int8 = int8_groups(params)
        self._ahead = {
            (form, *shape): Ahead(functools.partial(self._lower_ahead, form, *shape))
            for form in dict.fromkeys(row.form for row in plans)
            for shape in ahead
        }
        if self._ahead:
            load_tokenizer(processor)
        self.params = inference_params(params, dtype, place=jax.device_put)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        *,
        dtype: Any = jnp.float32,
        adapter: str | os.PathLike[str] | None = None,
        processor: str | os.PathLike[str] | None = None,
        ahead: Callable[[Processor], Iterable[tuple[int, int]]] | None = None,
        plans: Iterable[SamplerPlan] = (DEFAULT,),
    ) -> Policy:
        """Loads any layout that `xvla_jax.load_pretrained` reads.

        Args:
            folder: the checkpoint, with its processor files unless ``processor`` has them.
            dtype: computing type.
            adapter: folder of a LoRA adapter to merge into the parameters.
            processor: another folder with processor files.
            ahead: returns views and batch size of programs to compile while the weights are read.
            plans: sampler plans to compile them for.

        Raises:
            CheckpointError: something is missing or does not fit.
        """
        # Without an adapter parameters go from disk to the device leaf by leaf: one copy in memory.
        loaded = load_checkpoint(folder, stored=adapter is None, int8=adapter is None)
        if adapter is not None:
            loaded = relabelled(loaded, *adapter_space(adapter), adapter_delay(adapter))
        chosen = Processor.read(processor) if processor else loaded.processor
        if chosen is None:
            raise CheckpointError(
                f"{folder} has no preprocessor_config.json, and no LeRobot config.json that says "
                "as much; image size, resizing and text length are part of the policy"
            )
        params = loaded.params
        if adapter is not None:
            params = merge_adapter(params, load_adapter(adapter, loaded.config))
        domains = loaded.domain_ids
        parts = (loaded.config, params, chosen, loaded.contracts)
        programs = tuple(ahead(chosen)) if ahead else ()
        return cls(*parts, dtype=dtype, domains=domains, ahead=programs, plans=plans)

    def domain_id(self, name: str) -> int:
        """Returns the id of a domain, for `Observation`.

        Raises:
            InputError: no domain has that name; the message lists those that there are.
        """
        if name not in self.domains:
            raise InputError(
                f"domain {name!r} is unknown to this checkpoint; it has {', '.join(self.domains)}"
            )
        return self.domains[name]

    def act(
        self,
        observations: Sequence[Observation],
        *,
        steps: int | Sequence[int] | None = None,
        seed: int | Sequence[int] = 0,
        plan: str | SamplerPlan | Sequence[SamplerPlan] = DEFAULT,
    ) -> np.ndarray:
        """Returns chunks for a batch of observations, also of different robots.

        Args:
            observations: at least one.
            steps: denoising steps, at least 1, in place of the plan's; one number for all, or one
                for each observation.
            seed: one for all, or one for each observation.
            plan: a row of `plans.PLANS` or its name; one for all, or one for each observation.

        Returns:
            float32[B, T, D], postprocessed: grippers are probabilities of closed.

        Raises:
            InputError: an observation does not fit the model; the message names it and the field.
            ConfigError: there is no plan of that name.
        """
        rows = named_plan(plan) if isinstance(plan, str) else plan
        prepared = [self.prepare(o, who=f"observation {i}: ") for i, o in enumerate(observations)]
        return self.run(prepared, steps=steps, seed=seed, plan=rows)

    def prepare(self, observation: Observation, *, who: str = "") -> Prepared:
        """Does the part of `act` that needs no device; threads may call it at the same time.

        Args:
            observation: to check and prepare.
            who: begins the message of an error.

        Raises:
            InputError: the observation does not fit the model.
        """
        check_observation(observation, self.config, who=who)
        images, present = self.processor.prepare_images(observation["images"])
        proprio = np.asarray(observation["proprio"], np.float32)
        state = self.processor.state
        widths = {self.space.width, state.width if state else self.space.real_width}
        if proprio.ndim != 1 or len(proprio) not in widths or not np.isfinite(proprio).all():
            raise InputError(
                f"{who}proprio has shape {proprio.shape}; {self.space.width} finite "
                f"numbers are expected by action space {self.space.mode!r}"
            )
        mask, held = self._unrecorded(int(observation["domain_id"]), proprio)
        if state:
            proprio = state.scale(proprio, what=f"{who}proprio")
        prefix, weight = inpainting.prepare(
            inpainting.scaled(observation, self.space, self.processor.action),
            self.space,
            self._shape,
            self.contracts,
            who=who,
            max_delay=self.config.rtc_max_delay,
        )
        return Prepared(
            images=images[: int(present.sum())],
            input_ids=token_ids(self.processor, observation["instruction"]),
            proprio=np.pad(proprio, (0, self.space.width - len(proprio))),
            domain_id=int(observation["domain_id"]),
            prefix=prefix,
            prefix_weight=weight,
            prefix_clean=inpainting.clean_rows(observation, weight),
            channel_mask=mask,
            held=held,
        )

    def run(
        self,
        prepared: Sequence[Prepared],
        *,
        steps: int | Sequence[int] | None = None,
        seed: int | Sequence[int] = 0,
        views: int = 1,
        plan: SamplerPlan | Sequence[SamplerPlan] = DEFAULT,
    ) -> np.ndarray:
        """Does the rest of `act`, with the same arguments and result.

        The program is of the next power of two of the batch, and of its most views or ``views``.
        Observations of plans of another form run in another program, one after the other.
        """
        if not prepared:
            raise InputError("act was given no observation; at least one is needed")
        size = len(prepared)
        rows = _one_each("plans", plan, size)
        inputs = self._stack(prepared, max(views, *(len(p.images) for p in prepared)))
        inputs["seed"] = np.asarray(_one_each("seeds", seed, size), np.uint32)
        counts = [row.steps for row in rows] if steps is None else _one_each("steps", steps, size)
        inputs["steps"] = np.asarray(counts, np.int32)
        inputs["tolerance"] = np.asarray([row.tolerance for row in rows], np.float32)
        if (inputs["steps"] < 1).any():
            raise InputError(f"steps is {inputs['steps'].min()}; at least 1 is needed")
        places: dict[Form, list[int]] = {}
        for i, row in enumerate(rows):
            places.setdefault(row.form, []).append(i)
        parts = [
            self._run_form(form, {name: value[chosen] for name, value in inputs.items()})
            for form, chosen in places.items()
        ]
        order = np.argsort(np.concatenate(list(places.values())))
        actions = np.concatenate(parts)[order]
        if self.processor.action:
            actions = self.processor.action.unscale(actions)
        return self._hold(actions, prepared) if self._masks else actions

    def _run_form(self, form: Form, inputs: dict[str, np.ndarray]) -> np.ndarray:
        """Runs the program of a form on a batch, padded to the next power of two."""
        size = len(inputs["steps"])
        padding = _bucket(size) - size
        inputs = {
            name: np.concatenate([value, np.repeat(value[:1], padding, axis=0)])
            for name, value in inputs.items()
            if form.adaptive or name != "tolerance"
        }
        key = form, inputs["images"].shape[1], size + padding
        program = self._ahead.get(key) or functools.partial(chunk, *self._static, form=form)
        return np.asarray(program(self.params, inputs))[:size]

    def _unrecorded(self, domain_id: int, proprio: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns bool[D], False for channels without data, and float32[D], their actions."""
        mask, held = np.ones(self.space.width, bool), np.zeros(self.space.width, np.float32)
        contract = self.contracts.get(domain_id)
        if contract is not None:
            mask[list(contract.unrecorded)] = False
            absolute = set(contract.unrecorded) - set(contract.relative_channels)
            channels = [channel for channel in sorted(absolute) if channel < len(proprio)]
            held[channels] = proprio[channels]
        return mask, held

    def _hold(self, actions: np.ndarray, prepared: Sequence[Prepared]) -> np.ndarray:
        """Returns actions ``[B, T, d]`` with the held values; committed rows stay as they came."""
        width = actions.shape[-1]
        lacking = ~np.stack([one.channel_mask[:width] for one in prepared])  # [B, d]
        held = np.stack([one.held[:width] for one in prepared])  # [B, d]
        free = np.stack([one.prefix_weight < 1 for one in prepared])  # [B, T]
        return np.where(lacking[:, None] & free[..., None], held[:, None], actions)

    def _stack(self, prepared: Sequence[Prepared], shown: int) -> dict[str, np.ndarray]:
        """Stacks a batch; slots behind its last view stay out of the tower."""
        side = self.processor.image_size
        images = np.zeros((len(prepared), shown, side, side, 3), self.processor.pixel_dtype)
        for row, one in zip(images, prepared, strict=True):
            row[: len(one.images)] = one.images
        present = np.array([len(one.images) for one in prepared])
        return {
            "images": images,
            "view_mask": np.arange(self.processor.num_views) < present[:, None],
            "input_ids": np.stack([one.input_ids for one in prepared]),
            "proprio": np.stack([one.proprio for one in prepared]),
            "domain_id": np.asarray([one.domain_id for one in prepared], np.int32),
            "prefix": np.stack([one.prefix for one in prepared]),
            "prefix_weight": np.stack([one.prefix_weight for one in prepared]),
            **self._optional_inputs(
                np.stack([one.channel_mask for one in prepared]),
                np.asarray([one.prefix_clean for one in prepared], np.int32),
            ),
        }

    def lower(
        self, *, views: int, batch: int, steps: int | None = None, plan: SamplerPlan = DEFAULT
    ) -> jax.stages.Lowered:
        """Lowers the program of `act` for a batch size and a number of views.

        Compiled, it takes ``policy.params`` and inputs like `example_inputs`. It is one dispatch,
        without a round trip to the host between steps. `act` gives the number of steps at run time;
        here it is fixed, so that the program's work can be counted, unless the plan is adaptive.
        """
        inputs = self.example_inputs(views=views, batch=batch)
        if plan.form.adaptive:
            inputs["tolerance"] = np.full(batch, plan.tolerance, np.float32)
        shapes = jax.eval_shape(lambda: inputs)
        steps = plan.steps if steps is None else steps
        return chunk.lower(*self._static, self.params, shapes, form=plan.form, steps=steps)

    def _lower_ahead(self, form: Form, views: int, batch: int) -> jax.stages.Lowered:
        """Lowers the program of `run`, which takes the number of steps as an input."""
        inputs = self.example_inputs(views=views, batch=batch)
        inputs["steps"] = np.ones(batch, np.int32)
        if form.adaptive:
            inputs["tolerance"] = np.ones(batch, np.float32)
        dtype = str(np.dtype(self.model.dtype))
        return lower_stored(
            functools.partial(chunk, *self._static, form=form),
            abstract_inference_params(self.config, self.model.dtype, None, int8=self.int8),
            jax.eval_shape(lambda: inputs),
            identity={
                "config": self.config.to_dict(),
                "dtype": dtype,
                "pixels": self._static[1:],
                "form": form,
            },
        )

    def example_inputs(self, *, views: int, batch: int) -> dict[str, np.ndarray]:
        """Returns inputs of zeros for the program of `lower`."""
        inputs = example_inputs(self.processor, self._shape, views, batch)
        mask, clean = np.ones((batch, self.space.width), bool), np.zeros(batch, np.int32)
        return inputs | self._optional_inputs(mask, clean)

    def _optional_inputs(self, mask: np.ndarray, clean: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the inputs that the program has only where these weights need them."""
        masks = {CHANNEL_MASK: mask} if self._masks else {}
        return masks | ({_CLEAN: clean} if self.config.rtc_max_delay else {})

    @property
    def _shape(self) -> tuple[int, int]:
        return self.config.num_actions, self.space.width

    @property
    def _static(self) -> tuple[XVLA, tuple[float, ...], tuple[float, ...]]:
        return self.model, tuple(self.processor.mean), tuple(self.processor.std)


def _check_scalings(processor: Processor, space: ActionSpace) -> None:
    """Refuses statistics that are not of this action space's channels."""
    state, action = processor.state, processor.action
    if (state and state.width > space.width) or (action and action.width != space.real_width):
        raise CheckpointError(
            f"the checkpoint normalises {state and state.width} channels of the state and "
            f"{action and action.width} of actions; action space {space.mode!r} has up to "
            f"{space.width} and {space.real_width}"
        )


def _bucket(size: int) -> int:
    """Returns the batch size to which observations are padded: the next power of two."""
    return 1 << (size - 1).bit_length()


def _one_each(what: str, value: _Value | Sequence[_Value], size: int) -> list[_Value]:
    """Returns ``size`` values: one value repeated, or as many as given."""
    values = [value] * size if isinstance(value, (int, SamplerPlan)) else list(value)
    if len(values) != size:
        raise InputError(f"{len(values)} {what} for {size} observations; one each is expected")
    return values
