"""Lists the domains of a checkpoint; adds, exports and imports them with their soft prompts.

python -m scripts.prompt list CHECKPOINT
python -m scripts.prompt nearest CHECKPOINT --data=ROW --root=FOLDER [--by=loss] [--report=FILE]
python -m scripts.prompt add CHECKPOINT OUT --name=NAME --from=NAME|nearest|fresh --rate_hz=HZ
    --rotation=LAYOUT --views=NAME,NAME --proprio=KIND [--domain=ID]
python -m scripts.prompt export CHECKPOINT FILE --domain=NAME
python -m scripts.prompt import CHECKPOINT FILE OUT --name=NAME [--domain=ID] [--overwrite]

CHECKPOINT is of any layout, OUT a new checkpoint of the same layout, which appears complete or not
at all. FILE is a safetensors file with the prompt, its projections and its action contract. A
domain that is copied from one with a contract has the same contract, apart from the flags given. A
domain is given by name or id; a name that is new takes the next free id. Of the weights only the
tables of domains are held in memory, but for nearest, which runs the model on a new robot's data:
it names the domain to begin with, for --from.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from scripts.terminal import Command, UsageError, bytes_progress, quiet_libraries

if TYPE_CHECKING:
    from xvla_jax.checkpoint_tools.domains import Domain
    from xvla_jax.contract import Contract
    from xvla_jax.pretrained import Pretrained

_UNKNOWN = "not stated"

COMMAND = Command(__doc__, rows={"data": "data"}, more=True)
# the paths, where they are not given as arguments
COMMAND.DEFINE_string("checkpoint", None, "CHECKPOINT, as a flag.")
COMMAND.DEFINE_string("file", None, "FILE, as a flag.")
COMMAND.DEFINE_string("out", None, "OUT, as a flag.")
_DOMAIN = COMMAND.DEFINE_string("domain", None, "Id of the domain, a row of the tables; or name.")
_FROM = COMMAND.DEFINE_string("from", "", "What to copy: a domain by id or name, nearest, fresh.")
_RATE = COMMAND.DEFINE_float("rate_hz", None, "Actions of a chunk per second.", lower_bound=0)
_ROTATION = COMMAND.DEFINE_enum(
    "rotation", None, ["interleaved", "contiguous", "none"], "Layout of 6-D rotations."
)
_VIEWS = COMMAND.DEFINE_list(
    "views", None, "Cameras in the order of the slots, the main one first."
)
_PROPRIO = COMMAND.DEFINE_enum(
    "proprio", None, ["measured", "commanded", "zero"], "State that the policy gets."
)
_RELATIVE = COMMAND.DEFINE_list("relative", None, "Channels of the action relative to proprio.")
_NAME = COMMAND.DEFINE_string(
    "name", "", "A name for the domain; without --domain, at the next free id."
)
_SEED = COMMAND.DEFINE_integer("seed", 0, "Seed of --from=fresh.", lower_bound=0)
_OVERWRITE = COMMAND.DEFINE_bool("overwrite", False, "Replace a domain that is in use.")
_DTYPE = COMMAND.DEFINE_enum(
    "dtype",
    "source",
    ["source", "float32", "bfloat16", "float16"],
    "Type of the tensors in OUT.",
)
_DATA = COMMAND.DEFINE_string("data", None, "The new robot's dataset, or module:ROW; of nearest.")
_ROOT = COMMAND.DEFINE_string("root", None, "Its data folder.")
_EPISODES = COMMAND.DEFINE_integer(
    "episodes", 20, "How many of it nearest reads, half of them to measure on.", lower_bound=2
)
_BY = COMMAND.DEFINE_enum(
    "by",
    "loss",
    ["loss", "conventions"],
    "What nearest chooses by: what a linear head could not explain of held-out actions with each "
    "prompt; or conventions, rate, reach and speed.",
)
_REPORT = COMMAND.DEFINE_string("report", None, "JSON file for the numbers of nearest.")
COMMAND.DEFINE_alias("rate", "rate_hz")


def domain_table(domains: Sequence[Domain]) -> Table:
    """Returns a table with a line for each domain; names in brackets are X-VLA's for the id."""
    table = Table("domain")
    table.add_column("name", no_wrap=True)  # what the other forms of the command take
    table.add_column("conventions", overflow="fold")
    table.add_column("norm of the prompt", justify="right")
    for domain in domains:
        table.add_row(
            str(domain.domain_id),
            domain.name if domain.stated or not domain.name else f"({domain.name})",
            _UNKNOWN if domain.contract is None else _conventions(domain.contract),
            f"{domain.prompt_norm:.3f}, {'trained' if domain.trained else 'initial'}",
        )
    return table


def _conventions(contract: Contract) -> str:
    """Returns what the numbers of a domain mean, as `prompt add` takes it."""
    proprio = f"proprio {contract.proprio}"
    parts = [f"{contract.anchor_hz:g} Hz", contract.rotation_layout, *contract.views, proprio]
    return ", ".join([*parts, *([f"without {contract.lacking}"] if contract.lacking else [])])


def _list(console: Console, checkpoint: str) -> None:
    from xvla_jax.checkpoint_tools import domains
    from xvla_jax.pretrained import load_checkpoint

    loaded = load_checkpoint(checkpoint, stored=True)
    console.print(domain_table(domains.survey(loaded)))


def _add(console: Console, checkpoint: str, target: str) -> None:
    from xvla_jax.checkpoint_tools import domains
    from xvla_jax.checkpoints.folders import check_target
    from xvla_jax.pretrained import load_checkpoint

    check_target(target, source=checkpoint)
    loaded, domain_id = _with_place(load_checkpoint(checkpoint, stored=True))
    chosen, names = _FROM.value, loaded.domain_ids
    if chosen == "fresh":
        contract = _contract(loaded, domain_id, {})
        rows, origin = domains.fresh_rows(loaded, seed=_SEED.value), {"fresh": _SEED.value}
    else:
        if chosen == "nearest":
            contract = _contract(loaded, domain_id, {})
            source, why = domains.nearest(loaded, contract)
            console.print(f"copied from domain {source}: {why}", markup=False)
        elif chosen.isdigit() or chosen in names:
            source = int(chosen) if chosen.isdigit() else names[chosen]
            known = loaded.contracts.get(source)
            contract = _contract(loaded, domain_id, known.to_dict() if known else {})
        else:
            raise UsageError(
                f"--from={chosen}; the id or the name of a domain, nearest or fresh is needed"
            )
        rows, origin = domains.read_rows(loaded, source), {"copied_from": source}
    changed = domains.with_domain(
        loaded,
        domain_id,
        rows,
        contract,
        note={"name": _name(), **origin},
        overwrite=_OVERWRITE.value,
    )
    _save(console, changed, domain_id, checkpoint, target)


def _nearest(console: Console, checkpoint: str) -> None:
    from data.sources import open_mixture
    from eval.files import write_json
    from scripts.training.prompt_choice import choice_table, choose
    from xvla_jax.pretrained import load_checkpoint

    if not _DATA.value or not _ROOT.value:
        raise UsageError("nearest needs --data=ROW and --root=FOLDER, the new robot's recording")
    if _REPORT.value and pathlib.Path(_REPORT.value).exists():
        raise UsageError(f"--report={_REPORT.value} exists; give another name or remove it")
    (source,) = open_mixture(((_DATA.value, 1.0),), _ROOT.value)
    loaded = load_checkpoint(checkpoint)
    choice = choose(loaded, source, episodes=_EPISODES.value, seed=_SEED.value)
    console.print(choice_table(choice))
    best = choice.nearest(_BY.value)
    called = f" ({best.name})" if best.name else ""
    console.print(f"nearest by {_BY.value}: domain {best.domain_id}{called}", markup=False)
    if _REPORT.value:
        pathlib.Path(_REPORT.value).parent.mkdir(parents=True, exist_ok=True)
        write_json(pathlib.Path(_REPORT.value), choice.to_dict(_BY.value))


def _export(console: Console, checkpoint: str, file: str) -> None:
    from xvla_jax.checkpoint_tools import domains
    from xvla_jax.pretrained import load_checkpoint

    loaded = load_checkpoint(checkpoint, stored=True)
    domain_id = _existing(loaded)
    domain = domains.export_domain(loaded, domain_id, source=checkpoint)
    domains.write_domain(file, domain)
    size = pathlib.Path(file).stat().st_size
    note = "with its contract" if domain.contract else "without a contract: the source has none"
    console.print(f"{file}: domain {domain_id}, {size / 1e3:,.0f} kB, {note}", markup=False)


def _import(console: Console, checkpoint: str, file: str, target: str) -> None:
    from xvla_jax.checkpoint_tools import domains
    from xvla_jax.checkpoints.folders import check_target
    from xvla_jax.pretrained import load_checkpoint

    check_target(target, source=checkpoint)
    domain, loaded = domains.read_domain(file), load_checkpoint(checkpoint, stored=True)
    domains.check_same_shape(domain, loaded.config)
    if domain.provenance.get("backbone_sha256") != domains.backbone_digest(loaded):
        console.print(
            "the domain was trained with other weights around it: train it further before use",
            style="yellow",
        )
    loaded, domain_id = _with_place(loaded)
    changed = domains.with_domain(
        loaded,
        domain_id,
        domain.rows,
        domain.contract,
        note={"name": _name(), "imported": dict(domain.provenance)},
        overwrite=_OVERWRITE.value,
    )
    _save(console, changed, domain_id, checkpoint, target)


def _save(
    console: Console, loaded: Pretrained, domain_id: int, checkpoint: str, target: str
) -> None:
    from xvla_jax.checkpoint_tools.convert_layout import describe
    from xvla_jax.pretrained import save_pretrained

    dtype = loaded.stored_dtype if _DTYPE.value == "source" else _DTYPE.value
    with bytes_progress(console, "writing") as progress:
        rounded = save_pretrained(
            target,
            loaded.config,
            loaded.params,
            describe(pathlib.Path(checkpoint)).layout,
            processor=loaded.processor,
            contracts=loaded.contracts,
            domains=loaded.domains,
            buffers=loaded.buffers,
            dtype=dtype,
            files=loaded.files,
            progress=progress,
        )
    called = f" ({_name()})" if _name() else ""
    console.print(f"{target}: domain {domain_id}{called} is in it", markup=False)
    if rounded:
        console.print(
            f"{rounded} tensors were rounded to {dtype}; --dtype=float32 keeps them as they are",
            style="yellow",
            markup=False,
        )


def _contract(loaded: Pretrained, domain_id: int, known: Mapping[str, Any]) -> Contract:
    """Returns a contract from the flags, over the fields of the domain that is copied."""
    from xvla_jax.actions import action_space, misfit
    from xvla_jax.contract import Contract
    from xvla_jax.errors import ConfigError

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
            f"the new domain's {', '.join(missing)} must be given (--rate_hz, --rotation, --views, "
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


def _name() -> str:
    """Returns the name that the flags give; empty if they give an id alone."""
    text = _DOMAIN.value or ""
    return _NAME.value or ("" if text.isdigit() else text)


def _existing(loaded: Pretrained) -> int:
    """Returns the id of --domain, an id or a name of the checkpoint."""
    from xvla_jax.errors import ConfigError

    text = _DOMAIN.value
    if not text:
        raise UsageError("--domain=ID, or its name, is needed")
    if not text.isdigit() and text not in loaded.domain_ids:
        raise ConfigError(
            f"--domain={text}: the checkpoint has no domain of that name; it has "
            f"{', '.join(loaded.domain_ids)}"
        )
    return int(text) if text.isdigit() else loaded.domain_ids[text]


def _with_place(loaded: Pretrained) -> tuple[Pretrained, int]:
    """Returns the checkpoint with a place for the domain of the flags, and its id.

    A name without an id takes the next one that is free; where there is none, the tables grow.
    """
    from xvla_jax.checkpoint_tools import domains, extension

    text, name = _DOMAIN.value or "", _name()
    if not text and not name:
        raise UsageError("--domain=ID or --name=NAME is needed")
    if text.isdigit():
        domain_id = int(text)
        domains.check_domain(loaded.config, domain_id)
    else:
        domain_id = loaded.domain_ids.get(text or name, domains.next_free(loaded))
        loaded = extension.grown(loaded, domain_id + 1, seed=_SEED.value)
    return (domains.named(loaded, domain_id, name) if name else loaded), domain_id


# action -> (its arguments, its function)
_ACTIONS: dict[str, tuple[str, Callable[..., None]]] = {
    "list": ("CHECKPOINT", _list),
    "nearest": ("CHECKPOINT", _nearest),
    "add": ("CHECKPOINT OUT", _add),
    "export": ("CHECKPOINT FILE", _export),
    "import": ("CHECKPOINT FILE OUT", _import),
}


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, or 1 when nothing was written."""
    action, *paths = arguments or [""]
    takes, run = _ACTIONS.get(action, ("", None))
    names = takes.split()
    paths = paths or [COMMAND.flags[name.lower()].value for name in names]
    if run is None or len(paths) != len(names) or None in paths:
        usage = "; ".join(f"{name} {takes}" for name, (takes, _) in _ACTIONS.items())
        raise UsageError(f"one of these is needed: {usage}")
    from xvla_jax.errors import XVLAError

    quiet_libraries()
    console = Console()
    try:
        run(console, *paths)
    except (XVLAError, OSError, ValueError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(main, sys.argv))
