"""Names of domains -> ids, the rows of a model's soft prompts and per-domain layers.

A row of the table names its domain; the id is looked up at the start of a run. Robots of X-VLA's
released weights have ids that are fixed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from data.rows.table import DATASETS
from data.spec import DatasetSpec

# robots of released domains whose rows name none (data/rows/robots.py); by the sets' own papers
ROBOTS_OF_DOMAINS: Mapping[str, str] = {
    "widowx-air": "widowx_250",
    "robocasa-human": "franka_panda",
    "VLABench": "franka_panda",
    "robomind-franka": "franka_panda",
    "robomind-franka-dual": "franka_panda",
    "robomind-ur": "ur5",
}


@dataclass(frozen=True)
class DomainFacts:
    """Statements of the rows of a released domain about its recordings.

    Attributes:
        domain: its name.
        arms: number of arms.
        rate_hz: frames a second.
        views: number of cameras; None: the meta file of the recording names them.
        robot: row of data/rows/robots.py; empty: none.
    """

    domain: str
    arms: int
    rate_hz: float
    views: int | None
    robot: str


def domain_facts() -> list[DomainFacts]:
    """Facts of the domains of X-VLA's weights that act by poses, by name."""
    by_domain: dict[str, list[DatasetSpec]] = {}
    for row in DATASETS.values():
        released = row.domain and row.domain_id is not None
        if released and row.arms and not row.joints and row.folder is None:
            by_domain.setdefault(row.domain, []).append(row)
    return [
        DomainFacts(
            domain=domain,
            arms=len(rows[0].arms),
            rate_hz=rows[0].rate_hz,
            views=next((len(row.views) for row in rows if row.views), None),
            robot=next((r.robot for r in rows if r.robot), ROBOTS_OF_DOMAINS.get(domain, "")),
        )
        for domain, rows in sorted(by_domain.items())
    ]


def resolve_domains(
    rows: Iterable[DatasetSpec],
    known: Mapping[str, int] | None = None,
    *,
    occupied: Collection[int] = (),
) -> dict[str, int]:
    """Ids of the domains of a mixture by name, in the order of its rows.

    A name that the checkpoint has keeps its id there. Another keeps the id that its row fixes,
    unless that has another name already. All others take the next ids that are free: neither known,
    nor occupied, nor fixed by any row of the mixture or of this repository. A row with an id alone
    has the name that the id has.

    Args:
        rows: of the mixture.
        known: ids by name of the checkpoint that a run begins with.
        occupied: further ids of it that are in use without a name.

    Raises:
        ValueError: rows of one domain fix different ids.
    """
    rows, ids = list(rows), dict(known or {})
    fixed = _fixed_ids(rows)
    for name, id_ in fixed.items():
        if name not in ids and id_ not in ids.values():
            ids[name] = id_
    released = {row.domain: row.domain_id for row in DATASETS.values() if row.domain_id is not None}
    taken = {*released.values(), *ids.values(), *fixed.values(), *occupied}
    taken |= {row.domain_id for row in rows if row.domain_id is not None}
    resolved: dict[str, int] = {}
    for row in rows:
        name = row.domain
        if not name:
            assert row.domain_id is not None, "data/spec.py asks for one of the two"
            resolved[_name_of(row.domain_id, ids, released)] = row.domain_id
            continue
        if name not in ids:
            ids[name] = next(i for i in range(len(taken) + 1) if i not in taken)
            taken.add(ids[name])
        resolved[name] = ids[name]
    return resolved


def domain_id_of(row: DatasetSpec, ids: Mapping[str, int]) -> int:
    """Id of a row's domain, by the table that `resolve_domains` returned.

    Raises:
        ValueError: the table lacks its name.
    """
    if row.domain not in ids and (row.domain or row.domain_id is None):
        raise ValueError(
            f"dataset {row.name!r}: its domain {row.domain!r} has no id; those that have one are "
            f"{', '.join(ids)}"
        )
    return ids[row.domain] if row.domain else int(row.domain_id or 0)


def _fixed_ids(rows: Iterable[DatasetSpec]) -> dict[str, int]:
    fixed: dict[str, int] = {}
    for row in rows:
        if not row.domain or row.domain_id is None:
            continue
        if fixed.setdefault(row.domain, row.domain_id) != row.domain_id:
            raise ValueError(
                f"dataset row {row.name!r}: domain {row.domain!r} has domain_id {row.domain_id}, "
                f"another row of it {fixed[row.domain]}; a domain has one id ({row.written_in})"
            )
    return fixed


def _name_of(domain_id: int, ids: Mapping[str, int], released: Mapping[str, int]) -> str:
    """Name of an id that a row states alone; one without a name is called by its number."""
    for table in (ids, released):
        for name, id_ in table.items():
            if id_ == domain_id:
                return name
    return f"domain {domain_id}"
