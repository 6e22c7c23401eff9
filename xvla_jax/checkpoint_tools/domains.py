"""The domains of a checkpoint: each has a soft prompt, and a row in every per-domain layer.

They are read, added and replaced in a checkpoint, and written to files of their own. The biases
show whether a domain was ever trained: they start at zero, and gradients reach only the rows of
domains that are in the data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from xvla_jax.actions import action_space
from xvla_jax.checkpoints.accounting import not_finite, refuse_not_finite
from xvla_jax.checkpoints.hf_folder import NOTES_NAME, Pretrained, read_notes
from xvla_jax.checkpoints.safetensors_files import TensorFiles, TensorInfo, write_safetensors
from xvla_jax.config import XVLAConfig
from xvla_jax.contract import XVLA_DOMAINS, Contract, check_fits, is_domain_name
from xvla_jax.errors import CheckpointError, ConfigError
from xvla_jax.untrusted import parse_json, typed_map

_FORMAT: Final = "xvla-domain-1"
_PROMPT: Final = "soft_prompts"
_PROMPT_STD: Final = 0.02  # standard deviation of a new one
Rows = dict[str, np.ndarray]  # table -> the row of one domain, float32


@dataclasses.dataclass(frozen=True)
class Domain:
    """A domain as `survey` describes it.

    Attributes:
        domain_id: row of every table.
        name: empty if it has none.
        stated: the checkpoint says the name; else it is that of X-VLA's weights.
        contract: None if the checkpoint has none.
        prompt_norm: of the soft prompt; a new one has ``0.02 * sqrt(P * M)``.
        trained: its layers have left their initial state.
        note: its origin, if it was added or imported.
    """

    domain_id: int
    name: str
    stated: bool
    contract: Contract | None
    prompt_norm: float
    trained: bool
    note: Mapping[str, Any]

    @property
    def occupied(self) -> bool:
        """True if replacing its rows would lose something."""
        return self.trained or self.contract is not None


@dataclasses.dataclass(frozen=True)
class DomainFile:
    """A domain without its checkpoint.

    Attributes:
        rows: by table.
        contract: None if the checkpoint had none.
        model: as `model_shape` returns it.
        provenance: checkpoint, domain id there, digest of the weights that it was trained with, and
            the domain's own note.
    """

    rows: Rows
    contract: Contract | None
    model: Mapping[str, Any]
    provenance: Mapping[str, Any]


def table_names(config: XVLAConfig) -> list[str]:
    """Returns the per-domain tables of a model, as paths below ``transformer``."""
    layers = ["action_encoder", "action_decoder"]
    layers += ["vlm_proj", "aux_visual_proj"] if config.use_hetero_proj else []
    tables = [f"{layer}/{part}" for layer in layers for part in ("kernel", "bias")]
    return [_PROMPT, *tables] if config.len_soft_prompts else tables


def read_tables(loaded: Pretrained) -> dict[str, np.ndarray]:
    """Reads all rows of all tables, ``[domains, ...]``, and nothing else of a stored checkpoint."""
    return {
        name: np.asarray(_leaf(loaded.params, name), np.float32)
        for name in table_names(loaded.config)
    }


def read_rows(loaded: Pretrained, domain_id: int) -> Rows:
    """Reads the rows of a domain.

    Raises:
        ConfigError: the model has no such domain.
    """
    check_domain(loaded.config, domain_id)
    return {name: table[domain_id] for name, table in read_tables(loaded).items()}


def fresh_rows(loaded: Pretrained, *, seed: int | Sequence[int]) -> Rows:
    """Draws rows as a new model has them."""
    rng, rows = np.random.default_rng(seed), {}
    for name, table in read_tables(loaded).items():
        count, size = len(table), math.prod(table.shape[1:])
        if name == _PROMPT:
            value = rng.normal(0, _PROMPT_STD, table.shape[1:])
        elif name.endswith("bias"):
            value = np.zeros(table.shape[1:])
        else:  # Xavier over the table as a matrix, a row for each domain
            bound = math.sqrt(6 / (count + size))
            value = rng.uniform(-bound, bound, table.shape[1:])
        rows[name] = value.astype(np.float32)
    return rows


def named(loaded: Pretrained, domain_id: int, name: str) -> Pretrained:
    """Returns the checkpoint with a name for a domain, in place of the one that it had.

    Raises:
        ConfigError: the text is no name, or another domain has it.
    """
    if not is_domain_name(name):
        raise ConfigError(
            f"{name!r} cannot name a domain; up to 64 printable characters without , = : * / are "
            "allowed, and no number"
        )
    known = loaded.domain_ids
    if known.get(name, domain_id) != domain_id:
        raise ConfigError(f"domain {known[name]} is called {name!r} already; choose another name")
    kept = {text: i for text, i in known.items() if i != domain_id}
    return dataclasses.replace(loaded, domains=kept | {name: domain_id})


def next_free(loaded: Pretrained) -> int:
    """Returns the lowest id that no name, contract or training uses, nor X-VLA's weights.

    It may be beyond the model's domains.
    """
    used = {domain.domain_id for domain in survey(loaded) if domain.occupied}
    used |= {*loaded.domain_ids.values(), *XVLA_DOMAINS.values()}
    return next(i for i in range(len(used) + 1) if i not in used)


def with_domain(
    loaded: Pretrained,
    domain_id: int,
    rows: Rows,
    contract: Contract | None,
    *,
    note: Mapping[str, Any],
    overwrite: bool = False,
) -> Pretrained:
    """Returns the checkpoint with a domain's rows, contract and note replaced; shares the rest.

    Args:
        loaded: is not changed; its parameters may be on disk.
        domain_id: the domain.
        rows: as `read_rows` returns them.
        contract: of the domain; None removes the present one.
        note: origin of the rows.
        overwrite: replace a domain that is trained or has a contract.

    Raises:
        CheckpointError: the domain is occupied, or the rows have other shapes.
        ConfigError: the model has no such domain.
        ContractError: the contract does not fit the model's action space.
    """
    _check_free(loaded, domain_id, overwrite=overwrite)
    if contract is not None:
        contract = dataclasses.replace(contract, domain_id=domain_id)
        check_fits([contract], loaded.config)
    params = _with_rows(loaded, domain_id, rows)
    contracts = {k: v for k, v in loaded.contracts.items() if k != domain_id}
    if contract is not None:
        contracts[domain_id] = contract
    notes = read_notes(loaded) | {str(domain_id): dict(note)}
    files = loaded.files | {NOTES_NAME: (json.dumps(notes, indent=2) + "\n").encode()}
    return dataclasses.replace(
        loaded, params=params, contracts=dict(sorted(contracts.items())), files=files
    )


def survey(loaded: Pretrained) -> list[Domain]:
    """Describes all domains of a checkpoint, by id."""
    tables, notes = read_tables(loaded), read_notes(loaded)
    biases = [table for name, table in tables.items() if name.endswith("bias")]
    prompts = tables.get(_PROMPT)
    names = {i: name for name, i in loaded.domain_ids.items()}
    return [
        Domain(
            domain_id=i,
            name=names.get(i, ""),
            stated=bool(loaded.domains) or bool(notes.get(str(i), {}).get("name")),
            contract=loaded.contracts.get(i),
            prompt_norm=0.0 if prompts is None else float(np.linalg.norm(prompts[i])),
            trained=any(bool(bias[i].any()) for bias in biases),
            note=notes.get(str(i), {}),
        )
        for i in range(loaded.config.num_domains)
    ]


def nearest(loaded: Pretrained, contract: Contract) -> tuple[int, str]:
    """Returns the trained domain that is the best source for a new one, and the reason.

    If contracts are known, it is the one that agrees with ``contract`` most, compared in this
    order: action space, rotation layout, relative channels, proprio, number of views, their names,
    and then the nearest rate. Otherwise it is the domain whose prompt is nearest to the mean of all
    trained ones.

    Raises:
        CheckpointError: no domain is trained.
    """
    trained = [domain for domain in survey(loaded) if domain.trained]
    if not trained:
        raise CheckpointError(
            "no domain of this checkpoint is trained; add one with --from=fresh, or train with "
            "config.new_domains = 'NAME=fresh'"
        )
    known = {d.domain_id: d.contract for d in trained if d.contract is not None}
    if known:
        agreements = {i: agreement(theirs, contract) for i, theirs in known.items()}
        best = max(known, key=lambda i: (*agreements[i].values(), -octaves(known[i], contract), -i))
        same = [name for name, agrees in agreements[best].items() if agrees]
        other = [name for name, agrees in agreements[best].items() if not agrees]
        return best, (
            f"nearest of {len(known)} contracts: same {', '.join(same) or 'in nothing'}; "
            f"other {', '.join(other) or 'in nothing'}; "
            f"{known[best].anchor_hz:g} Hz, wanted {contract.anchor_hz:g} Hz"
        )
    tables = read_tables(loaded)
    if _PROMPT not in tables:
        raise CheckpointError("this model has neither contracts nor prompts; give --from=ID")
    ids = [domain.domain_id for domain in trained]
    prompts = tables[_PROMPT][ids]
    distances = np.sqrt(np.square(prompts - prompts.mean(axis=0)).sum(axis=(1, 2)))
    best = int(np.argmin(distances))
    return ids[best], (
        f"no trained domain has a contract; of {len(ids)} prompts its is nearest to their mean, at "
        f"{distances[best]:.3g} (the farthest at {distances.max():.3g})"
    )


def backbone_digest(loaded: Pretrained) -> str:
    """Returns the SHA-256 of a matrix of the last block: it identifies the weights of a prompt."""
    kernel = loaded.params["transformer"]["blocks"]["attn"]["qkv"]["kernel"]
    last = np.ascontiguousarray(kernel[loaded.config.depth - 1], np.float32)
    return hashlib.sha256(last.tobytes()).hexdigest()


def check_domain(config: XVLAConfig, domain_id: int) -> None:
    """Raises a ConfigError if the model has no such domain."""
    if not 0 <= domain_id < config.num_domains:
        raise ConfigError(
            f"domain {domain_id} does not exist; this model has 0 .. {config.num_domains - 1}"
        )


def model_shape(config: XVLAConfig) -> dict[str, Any]:
    """Returns the sizes and kinds of a model that a domain depends on."""
    space = action_space(config)
    return {
        "action_space": space.mode,
        "action_width": space.width,
        "real_action_width": space.real_width,
        "num_actions": config.num_actions,
        "hidden_size": config.hidden_size,
        "len_soft_prompts": config.len_soft_prompts,
        "dim_time": config.dim_time,
        "use_hetero_proj": config.use_hetero_proj,
    }


def export_domain(loaded: Pretrained, domain_id: int, *, source: str) -> DomainFile:
    """Returns a domain of a checkpoint; ``source`` names the checkpoint for readers.

    Raises:
        ConfigError: the model has no such domain.
        CheckpointError: it holds values that are not finite.
    """
    rows = read_rows(loaded, domain_id)
    refuse_not_finite({name: not_finite(row) for name, row in rows.items()})
    provenance = {
        "checkpoint": source,
        "domain_id": domain_id,
        "backbone_sha256": backbone_digest(loaded),
        "note": read_notes(loaded).get(str(domain_id), {}),
    }
    contract = loaded.contracts.get(domain_id)
    return DomainFile(rows, contract, model_shape(loaded.config), provenance)


def write_domain(path: str | os.PathLike[str], domain: DomainFile) -> None:
    """Writes a file, complete or not at all.

    Raises:
        CheckpointError: the file exists.
    """
    path = pathlib.Path(path)
    if path.exists():
        raise CheckpointError(f"{path} exists; give another name or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": _FORMAT,
        "contract": json.dumps(domain.contract.to_dict() if domain.contract else None),
        "model": json.dumps(domain.model),
        "provenance": json.dumps(domain.provenance),
    }
    info = {name: TensorInfo.of(row) for name, row in domain.rows.items()}
    write_safetensors(path, info, domain.rows.__getitem__, metadata=metadata)


def read_domain(path: str | os.PathLike[str]) -> DomainFile:
    """Reads what `write_domain` wrote.

    Raises:
        CheckpointError: the file is missing, damaged, or of another kind.
    """
    files = TensorFiles.open(path)
    file_format = files.metadata.get("format")
    if file_format != _FORMAT:
        raise CheckpointError(
            f"{path}: its metadata say format {file_format!r}, a domain's file says {_FORMAT!r}"
        )
    try:
        contract, model, provenance = (
            parse_json(files.metadata[key]) for key in ("contract", "model", "provenance")
        )
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata cannot be read ({error!r})") from error
    known = None if contract is None else Contract.from_dict(contract, path)
    typed_map(model, path, "model")
    typed_map(provenance, path, "provenance")
    rows = {name: np.array(files.read(name), np.float32) for name in files.info}
    refuse_not_finite({name: not_finite(row) for name, row in rows.items()})
    return DomainFile(rows, known, model, provenance)


def check_same_shape(domain: DomainFile, config: XVLAConfig) -> None:
    """Refuses a domain of a model of another shape; names all differences."""
    ours = model_shape(config)
    if "real_action_width" not in domain.model:  # files from before it was noted
        del ours["real_action_width"]
    differing = [
        f"{name} is {domain.model.get(name)!r} in the file and {value!r} here"
        for name, value in ours.items()
        if domain.model.get(name) != value
    ]
    if differing:
        raise CheckpointError("the domain is of a model of another shape: " + "; ".join(differing))


def _check_free(loaded: Pretrained, domain_id: int, *, overwrite: bool) -> None:
    check_domain(loaded.config, domain_id)
    domains = survey(loaded)
    if domains[domain_id].occupied and not overwrite:
        free = [domain.domain_id for domain in domains if not domain.occupied]
        raise CheckpointError(
            f"domain {domain_id} is in use ({_summary(domains[domain_id])}); free are {free}. "
            "Choose another --domain, or replace it with --overwrite"
        )


def _with_rows(loaded: Pretrained, domain_id: int, rows: Rows) -> dict[str, Any]:
    tables = read_tables(loaded)
    for name, table in tables.items():
        row = rows.get(name, np.zeros(0, np.float32))
        if row.shape != table.shape[1:]:
            raise CheckpointError(
                f"{name} of the domain is {list(row.shape)}, in this model {list(table.shape[1:])}"
            )
        tables[name] = table.copy()
        tables[name][domain_id] = row
    return with_tables(loaded.params, tables)


def with_tables(params: Mapping[str, Any], tables: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns parameters with other per-domain tables; all other leaves are shared."""
    copied = _copied(params)
    for name, table in tables.items():
        _put(copied, name, table)
    return copied


def agreement(a: Contract, b: Contract) -> dict[str, bool]:
    """Returns the conventions by which `nearest` compares, in its order: True where they agree."""
    return {
        "action space": a.action_space == b.action_space,
        "rotation layout": a.rotation_layout == b.rotation_layout,
        "relative channels": a.relative_channels == b.relative_channels,
        "proprio": a.proprio == b.proprio,
        "number of views": len(a.views) == len(b.views),
        "views": a.views == b.views,
    }


def octaves(a: Contract, b: Contract) -> float:
    """Returns the distance of two rates: 1 where one is twice the other."""
    return abs(math.log2(a.anchor_hz / b.anchor_hz))


def _summary(domain: Domain) -> str:
    state = "trained" if domain.trained else "not trained"
    contract = domain.contract
    if contract is None:
        return f"{state}, without a contract"
    return (
        f"{state}, {contract.anchor_hz:g} Hz, {contract.rotation_layout}, "
        f"views {', '.join(contract.views)}"
    )


def _leaf(params: Mapping[str, Any], name: str) -> Any:
    node: Any = params["transformer"]
    for key in name.split("/"):
        node = node[key]
    return node


def _put(params: dict[str, Any], name: str, value: np.ndarray) -> None:
    *parents, last = name.split("/")
    node = params["transformer"]
    for key in parents:
        node = node[key]
    node[last] = value


def _copied(tree: Any) -> Any:
    """Returns new dictionaries with the same leaves."""
    if not isinstance(tree, Mapping):
        return tree
    return {key: _copied(child) for key, child in tree.items()}
