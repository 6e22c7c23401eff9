"""The domains of a checkpoint as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from data.spec import DatasetSpec
from xvla_jax.checkpoint_tools.domains import Domain

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
