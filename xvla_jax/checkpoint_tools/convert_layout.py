"""Converts a checkpoint to another layout, and verifies that the two are the same."""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from xvla_jax import buckets
from xvla_jax.batch import Observation
from xvla_jax.checkpoint_tools import probe
from xvla_jax.checkpoint_tools.certificate import (
    certificate_name,
    store_certificate,
    stored_certificate,
)
from xvla_jax.checkpoints import run_folder
from xvla_jax.checkpoints.accounting import INT8, STORED
from xvla_jax.checkpoints.folders import check_target
from xvla_jax.checkpoints.names import detect_dialect
from xvla_jax.checkpoints.relabel import relabelled
from xvla_jax.checkpoints.safetensors_files import DTYPES, Progress, TensorFiles
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import Contract, check_fits
from xvla_jax.errors import CheckpointError
from xvla_jax.lora import (
    ADAPTER_WEIGHTS_NAME,
    adapter_delay,
    adapter_space,
    load_adapter,
    merge_adapter,
)
from xvla_jax.models.int8 import DEFAULT_GROUPS, int8_params
from xvla_jax.policy import Policy
from xvla_jax.pretrained import (
    ORBAX,
    PEFT,
    Pretrained,
    export_adapter,
    load_checkpoint,
    save_pretrained,
)
from xvla_jax.processor import Processor

SOURCE_DTYPE = "source"
_OBSERVATIONS = 4
_CERTIFICATES = tuple(map(certificate_name, ("float32", "bfloat16")))  # by computing type

Stating = Callable[[XVLAConfig], Iterable[Contract]]


@dataclasses.dataclass(frozen=True)
class Side:
    """The stored tensors on one side of a conversion."""

    folder: str
    layout: str
    tensors: int
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Conversion:
    """Figures of a conversion.

    Attributes:
        source: the folder read; every stored tensor was used once.
        target: the folder written.
        dtype: stored type of the target's parameters.
        rounded: tensors that ``dtype`` does not hold exactly.
        seconds: duration.
        peak_rss: largest resident memory of the process so far, in bytes.
        certificates: of sampler plans, carried along because the model is the same.
        left: certificates of the source that say nothing of the target.
    """

    source: Side
    target: Side
    dtype: str
    rounded: int
    seconds: float
    peak_rss: int
    certificates: tuple[str, ...] = ()
    left: tuple[str, ...] = ()


def convert_checkpoint(
    source: buckets.Place,
    target: buckets.Place,
    layout: str,
    *,
    dtype: str = SOURCE_DTYPE,
    adapter: buckets.Place | None = None,
    overwrite: bool = False,
    resize: str | None = None,
    domain: int | None = None,
    stating: Stating | None = None,
    int8: Collection[str] = (),
    progress: Progress | None = None,
) -> tuple[Pretrained, Conversion]:
    """Writes ``target`` from ``source``.

    Args:
        source: of any layout.
        target: complete or not at all.
        layout: one of ``pretrained.LAYOUTS``.
        dtype: to store, or ``source`` for that of the source, or of its own source.
        adapter: PEFT folder that is merged into the parameters.
        overwrite: replace the target.
        resize: a row of ``resizing.RESIZING`` in place of the source's.
        domain: see `save_pretrained`.
        stating: returns action contracts for domains of which the source states none.
        int8: groups that dtype ``int8`` is for; by default the source's, or ``DEFAULT_GROUPS``.
        progress: called for every tensor or leaf that is written.

    Returns what was written, its parameters still on the source's disk; and the figures.

    Raises:
        CheckpointError, ConfigError: the source cannot be read, or the target cannot be written.
    """
    start = time.perf_counter()
    check_target(target, overwrite=overwrite, source=source)
    loaded = _stated(_changed(source, adapter, resize), source, stating)
    dtype = loaded.stored_dtype if dtype == SOURCE_DTYPE else dtype
    certificates = _certificates(source, loaded)
    rounded = _save(
        loaded,
        target,
        layout,
        overwrite=overwrite,
        dtype=dtype,
        progress=progress,
        domain=domain,
        int8=_groups(loaded, source, int8),
    )
    carried, left = _carried(loaded, target, certificates, changed=adapter or resize or rounded)
    sides = describe(source), describe(target)
    return loaded, Conversion(
        *sides,
        certificates=carried,
        left=left,
        dtype=dtype,
        rounded=rounded,
        seconds=time.perf_counter() - start,
        peak_rss=_peak_rss(),
    )


def _save(loaded: Pretrained, target: buckets.Place, layout: str, **options: Any) -> int:
    """Calls `save_pretrained` with all parts of a checkpoint but its certificates."""
    return save_pretrained(
        target,
        loaded.config,
        loaded.params,
        layout,
        processor=loaded.processor,
        contracts=loaded.contracts,
        domains=loaded.domains,
        buffers=loaded.buffers,
        files={k: v for k, v in loaded.files.items() if k not in _CERTIFICATES},
        **options,
    )


def _groups(loaded: Pretrained, source: buckets.Place, asked: Collection[str]) -> Collection[str]:
    """Returns the groups of parameters that are int8 in the target, where it has int8 weights.

    Raises:
        CheckpointError: the source has other ones.
    """
    if loaded.int8 and asked and set(asked) != set(loaded.int8):
        raise CheckpointError(
            f"{source} has int8 weights of {', '.join(loaded.int8)}; other groups than these are "
            "taken from float32 weights alone"
        )
    return asked or loaded.int8 or DEFAULT_GROUPS


def _certificates(source: buckets.Place, loaded: Pretrained) -> dict[str, bytes]:
    """Returns the certificates in the source's folder by name.

    Those in the files that a run carries along are of the weights that it began with.
    """
    if run_folder.find_step(source) is None:
        return {name: loaded.files[name] for name in _CERTIFICATES if name in loaded.files}
    stored = {name: stored_certificate(source / name) for name in _CERTIFICATES}
    return {name: content for name, content in stored.items() if content is not None}


def _carried(
    loaded: Pretrained, target: buckets.Place, certificates: Mapping[str, bytes], *, changed: object
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Writes certificates beside weights that act alike; returns names of those written, and left.

    Config, preprocessing and int8 groups are then read back as they were written.
    """
    names = tuple(certificates)
    if changed or not names:
        return (), names
    written = load_checkpoint(target, stored=True, int8=True)
    same = written.config.to_dict() == loaded.config.to_dict() and written.int8 == loaded.int8
    if not same or differing_fields(loaded.processor, written.processor):
        return (), names
    for name, content in certificates.items():
        store_certificate(target / name, content)
    return names, ()


def _stated(loaded: Pretrained, source: buckets.Place, stating: Stating | None) -> Pretrained:
    """Returns the source with the contracts of further domains."""
    stated = {one.domain_id: one for one in (stating(loaded.config) if stating else ())}
    other = [i for i, one in stated.items() if loaded.contracts.get(i, one) != one]
    if other:
        raise CheckpointError(
            f"{source} states action contracts of domains {other} itself, and other ones; "
            "a checkpoint's own cannot be replaced"
        )
    check_fits(stated.values(), loaded.config)
    return dataclasses.replace(loaded, contracts={**loaded.contracts, **stated})


def _changed(
    source: buckets.Place, adapter: buckets.Place | None, resize: str | None
) -> Pretrained:
    """Reads the source, with an adapter merged and another way of resizing, if given."""
    loaded = load_checkpoint(source, stored=True, int8=adapter is None)
    if adapter:
        loaded = relabelled(loaded, *adapter_space(adapter), adapter_delay(adapter))
        changes = load_adapter(
            adapter, loaded.config
        )  # before the base is read, as it may be refused
        loaded = dataclasses.replace(loaded, params=merge_adapter(loaded.params, changes))
    if not resize:
        return loaded
    if loaded.processor is None:
        raise CheckpointError(f"{source} has no processor, whose resizing --resize could change")
    processor = dataclasses.replace(loaded.processor, resize=resize)
    return dataclasses.replace(loaded, processor=processor)


def extract_adapter(
    source: buckets.Place, target: buckets.Place, *, overwrite: bool = False
) -> Conversion:
    """Writes the adapter of a LoRA run as a folder that PEFT loads; the base is not needed.

    Raises:
        CheckpointError: the source is no LoRA run, or the target cannot be written.
    """
    start = time.perf_counter()
    check_target(target, overwrite=overwrite, source=source)
    step = run_folder.find_step(source)
    if step is None:
        raise CheckpointError(f"{source} is no workdir of a LoRA run, from which {PEFT} is written")
    export_adapter(step, target, overwrite=overwrite)
    files = TensorFiles.open(run_folder.on_disk(target) / ADAPTER_WEIGHTS_NAME)
    return Conversion(
        source=describe(source),
        target=Side(str(target), PEFT, len(files.info), files.nbytes),
        dtype="float32",
        rounded=0,
        seconds=time.perf_counter() - start,
        peak_rss=_peak_rss(),
    )


def describe(folder: buckets.Place) -> Side:
    """Returns layout, number of stored tensors and bytes; reads no tensor."""
    step = run_folder.find_step(folder)
    if step is None:
        files = TensorFiles.open(run_folder.on_disk(folder))
        layout = detect_dialect(set(files.info)).name
        return Side(str(folder), layout, len(files.info), files.nbytes)
    leaves = json.loads((step / "params" / "_METADATA").read_text())["tree_metadata"]
    size = sum(path.stat().st_size for path in (step / "params").rglob("*") if path.is_file())
    return Side(str(folder), ORBAX, len(leaves), size)


def verify(source: Pretrained, folder: buckets.Place, *, dtype: str) -> dict[str, Any]:
    """Reads a folder back and compares it with the checkpoint that it was written from.

    Args:
        source: the checkpoint.
        folder: of any layout.
        dtype: stored type of the folder, to which the source's parameters are rounded first; to
            int8 for the comparison of parameters alone.

    Returns:
        Counts, equality of all parameters, and the largest difference of actions from the same raw
        observations (480 x 640 px, two cameras) and noise, each side with its own preprocessing;
        ``preprocessing`` has the fields in which the two differ.
    """
    written = load_checkpoint(folder, stored=dtype == INT8, int8=True)
    rounded = jax.tree.map(np.asarray, int8_params(source.params, written.int8))
    if not source.int8:  # an int8 source acts in int8
        source = dataclasses.replace(source, params=jax.tree.map(np.asarray, source.params))
    float32 = run_folder.find_step(folder) or dtype == INT8
    kind = np.float32 if float32 else DTYPES[STORED[dtype]]
    equal = jax.tree.map(
        lambda a, b: np.array_equal(a.astype(kind), np.asarray(b).astype(kind)),
        rounded,
        written.params,
    )
    observations = _random_observations(source)
    ours, theirs = (_act(checkpoint, observations) for checkpoint in (source, written))
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(source.params)),
        "parameters_equal": all(jax.tree.leaves(equal)),
        "chunks_compared": len(ours),
        "largest_action": float(np.abs(ours).max()),
        "largest_action_difference": float(np.abs(ours - theirs).max()),
        "preprocessing": differing_fields(source.processor, written.processor),
    }


def differing_fields(a: Processor | None, b: Processor | None) -> dict[str, tuple[Any, Any]]:
    """Returns the fields of two processors that differ, as JSON values; none if one is unknown."""
    if a is None or b is None:
        return {}
    fields = [dataclasses.asdict(side) for side in (a, b)]
    names = [field.name for field in dataclasses.fields(Processor) if field.compare]
    return {n: (fields[0][n], fields[1][n]) for n in names if fields[0][n] != fields[1][n]}


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _act(loaded: Pretrained, observations: list[Observation]) -> np.ndarray:
    # some LeRobot folders have no processor: then both sides get the same default
    processor = loaded.processor or Processor()
    policy = Policy(loaded.config, loaded.params, processor, loaded.contracts)
    return policy.act(observations, seed=list(range(len(observations))))


def _random_observations(source: Pretrained) -> list[Observation]:
    processor = source.processor or Processor()
    arrays, tasks = probe.raw_observations(source.config, processor, count=_OBSERVATIONS, seed=0)
    domains = sorted(source.contracts) or [0]
    return [
        {
            "images": list(images[:shown]),
            "instruction": task,
            "proprio": proprio,
            "domain_id": domains[i % len(domains)],
        }
        for i, (images, shown, proprio, task) in enumerate(
            zip(arrays["images"], arrays["shown"], arrays["proprio"], tasks, strict=True)
        )
    ]
