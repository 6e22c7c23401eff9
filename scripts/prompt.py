"""Soft prompts as things of their own: what a checkpoint has, and domains in and out of it.

python -m scripts.prompt list CKPT
python -m scripts.prompt add CKPT DST --domain=ID --from=ID|nearest|fresh --rate=HZ
    --rotation=LAYOUT --views=NAME,NAME --proprio=KIND [--name=TEXT]
python -m scripts.prompt export CKPT FILE --domain=ID
python -m scripts.prompt import CKPT FILE DST --domain=ID [--overwrite]

CKPT is of any layout, DST a new checkpoint of the same; it appears whole or not at all. FILE is a
safetensors file with the prompt, its projections and its action contract. A domain copied from one
that has a contract takes over what is not given. Of the weights only the tables of domains are
held in memory.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from absl import app, flags
from rich.console import Console
from rich.table import Table

from data.rows.table import DATASETS
from data.spec import DatasetSpec
from scripts.terminal import bytes_progress, ends_clearly, quiet_libraries
from xvla_jax.actions import action_space, misfit
from xvla_jax.checkpoint_tools import domains
from xvla_jax.checkpoint_tools.convert_layout import SOURCE_DTYPE, describe
from xvla_jax.checkpoint_tools.domains import Domain
from xvla_jax.checkpoints.accounting import STORED
from xvla_jax.checkpoints.folders import check_target
from xvla_jax.contract import Contract
from xvla_jax.errors import ConfigError, XVLAError
from xvla_jax.pretrained import Pretrained, load_checkpoint, save_pretrained

_UNKNOWN = "?"


def domain_table(domains: Sequence[Domain], datasets: Iterable[DatasetSpec]) -> Table:
    """One line for each domain.

    Names are the domain's own, or in brackets those of the dataset rows that use its id: X-VLA's
    checkpoints count domains so, others need not.
    """
    rows: dict[int, list[str]] = {}
    for row in datasets:
        rows.setdefault(row.domain_id, []).append(row.name)
    table = Table("domain", "name", "rate, Hz", "rotation", "views", "proprio")
    table.add_column("prompt norm", justify="right")
    table.add_column("state")
    for domain in domains:
        contract = domain.contract
        own = domain.note.get("name") or ""
        said = [_UNKNOWN] * 4
        if contract is not None:
            said = [
                f"{contract.anchor_hz:g}",
                contract.rotation_layout,
                ", ".join(contract.views),
                contract.proprio,
            ]
        names = ", ".join(rows.get(domain.domain_id, []))
        table.add_row(
            str(domain.domain_id),
            own or (f"({names})" if names else ""),
            *said,
            f"{domain.prompt_norm:.3f}",
            "trained" if domain.trained else "initial",
        )
    return table


_DOMAIN = flags.DEFINE_integer("domain", None, "Domain id: row of the tables.")
_FROM = flags.DEFINE_string("from", "", "What to copy: a domain id, nearest, or fresh.")
_RATE = flags.DEFINE_float("rate", None, "Actions of a chunk per second, Hz.", lower_bound=0)
_ROTATION = flags.DEFINE_enum(
    "rotation", None, ["interleaved", "contiguous", "none"], "Layout of 6-D rotations."
)
_VIEWS = flags.DEFINE_list("views", None, "Cameras in the order of the slots, the main one first.")
_PROPRIO = flags.DEFINE_enum(
    "proprio", None, ["measured", "commanded", "zero"], "What the policy is told of its state."
)
_RELATIVE = flags.DEFINE_list("relative", None, "Channels of the action relative to proprio.")
_NAME = flags.DEFINE_string("name", "", "A name for the domain, for the list.")
_SEED = flags.DEFINE_integer("seed", 0, "Of --from=fresh.", lower_bound=0)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a domain that is in use.")
_DTYPE = flags.DEFINE_enum("dtype", SOURCE_DTYPE, (SOURCE_DTYPE, *STORED), "Type of DST's tensors.")


def _list(console: Console, checkpoint: str) -> None:
    loaded = load_checkpoint(checkpoint, stored=True)
    console.print(domain_table(domains.survey(loaded), DATASETS.values()))


def _add(console: Console, checkpoint: str, target: str) -> None:
    check_target(target, source=checkpoint)
    loaded, domain_id = load_checkpoint(checkpoint, stored=True), _domain()
    chosen = _FROM.value
    if chosen == "fresh":
        contract = _contract(loaded, domain_id, {})
        rows, origin = domains.fresh_rows(loaded, seed=_SEED.value), {"fresh": _SEED.value}
    else:
        if chosen == "nearest":
            contract = _contract(loaded, domain_id, {})
            source, why = domains.nearest(loaded, contract)
            console.print(f"copied from domain {source}: {why}", markup=False)
        elif chosen.isdigit():
            source = int(chosen)
            known = loaded.contracts.get(source)
            contract = _contract(loaded, domain_id, known.to_dict() if known else {})
        else:
            raise ConfigError(f"--from={chosen}; a domain id, nearest or fresh is needed")
        rows, origin = domains.read_rows(loaded, source), {"copied_from": source}
    changed = domains.with_domain(
        loaded,
        domain_id,
        rows,
        contract,
        note={"name": _NAME.value, **origin},
        overwrite=_OVERWRITE.value,
    )
    _save(console, changed, checkpoint, target)


def _export(console: Console, checkpoint: str, file: str) -> None:
    loaded = load_checkpoint(checkpoint, stored=True)
    domain = domains.export_domain(loaded, _domain(), source=checkpoint)
    domains.write_domain(file, domain)
    size = pathlib.Path(file).stat().st_size
    said = "with its contract" if domain.contract else "without a contract: the source has none"
    console.print(f"{file}: domain {_domain()}, {size / 1e3:,.0f} kB, {said}", markup=False)


def _import(console: Console, checkpoint: str, file: str, target: str) -> None:
    check_target(target, source=checkpoint)
    domain, loaded = domains.read_domain(file), load_checkpoint(checkpoint, stored=True)
    domains.check_same_shape(domain, loaded.config)
    if domain.provenance.get("backbone_sha256") != domains.backbone_digest(loaded):
        console.print(
            "the domain was trained with other weights around it: train it further before use",
            style="yellow",
        )
    changed = domains.with_domain(
        loaded,
        _domain(),
        domain.rows,
        domain.contract,
        note={"name": _NAME.value, "imported": dict(domain.provenance)},
        overwrite=_OVERWRITE.value,
    )
    _save(console, changed, checkpoint, target)


def _save(console: Console, loaded: Pretrained, checkpoint: str, target: str) -> None:
    dtype = loaded.stored_dtype if _DTYPE.value == SOURCE_DTYPE else _DTYPE.value
    with bytes_progress(console, "writing") as progress:
        rounded = save_pretrained(
            target,
            loaded.config,
            loaded.params,
            describe(pathlib.Path(checkpoint)).layout,
            processor=loaded.processor,
            contracts=loaded.contracts,
            buffers=loaded.buffers,
            dtype=dtype,
            files=loaded.files,
            progress=progress,
        )
    console.print(f"{target}: domain {_domain()} is in it", markup=False)
    if rounded:
        console.print(
            f"{rounded} tensors were rounded to {dtype}; --dtype=float32 keeps them as they are",
            style="yellow",
            markup=False,
        )


def _contract(loaded: Pretrained, domain_id: int, known: Mapping[str, Any]) -> Contract:
    """From the flags, over what is known of the domain that is copied."""
    given = {
        "rotation_layout": _ROTATION.value,
        "anchor_hz": _RATE.value,
        "views": tuple(_VIEWS.value) if _VIEWS.value else None,
        "proprio": _PROPRIO.value,
        "relative_channels": None if _RELATIVE.value is None else tuple(map(int, _RELATIVE.value)),
    }
    fields = {**known, **{name: value for name, value in given.items() if value is not None}}
    fields |= {"domain_id": domain_id, "action_space": action_space(loaded.config).mode}
    required = (f.name for f in dataclasses.fields(Contract) if f.default is dataclasses.MISSING)
    missing = [name for name in required if name not in fields]
    if missing:
        raise ConfigError(
            f"the new domain's {', '.join(missing)} must be given (--rate, --rotation, --views, "
            "--proprio): nothing here says what its robot's numbers mean"
        )
    space = action_space(loaded.config)
    problem = misfit(
        space.mode,
        space.real_width,
        rotation_layout=fields["rotation_layout"],
        relative_channels=tuple(fields.get("relative_channels", ())),
    )
    if problem:
        raise ConfigError(
            f"the new domain has {problem}. Change --rotation or --relative; a checkpoint of "
            "another action space is made in training, by config.action_mode and "
            "config.real_action_dim, for which no domain need be added"
        )
    return Contract.from_dict(fields, "the flags", error=ConfigError)


def _domain() -> int:
    if _DOMAIN.value is None:
        raise ConfigError("--domain=ID is needed")
    return _DOMAIN.value


# Command -> what it takes, and what does it.
_COMMANDS: dict[str, tuple[str, Callable[..., None]]] = {
    "list": ("CKPT", _list),
    "add": ("CKPT DST", _add),
    "export": ("CKPT FILE", _export),
    "import": ("CKPT FILE DST", _import),
}


def main(argv: list[str]) -> int:
    """Returns the exit status: 0, or 1 when nothing was written."""
    takes, run = _COMMANDS.get(argv[1] if len(argv) > 1 else "", ("", None))
    if run is None or len(argv) - 2 != len(takes.split()):
        usage = "; ".join(f"{name} {takes}" for name, (takes, _) in _COMMANDS.items())
        raise app.UsageError(f"one of these is needed: {usage}")
    quiet_libraries()
    console = Console()
    try:
        run(console, *argv[2:])
    except (XVLAError, OSError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(app.run(ends_clearly(main)))
